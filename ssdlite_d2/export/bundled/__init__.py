"""Files that go into every bundle as they are. They import nothing of this package."""
