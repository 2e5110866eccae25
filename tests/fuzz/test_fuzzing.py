"""Whatever annotation files and configs hold: two finite steps of training, or one line."""

from fuzzing import KINDS, run_cases

COUNT = 400


def test_every_damaged_file_trains_or_ends_in_a_line(monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "")  # put back what the cases change
    failed = []

    def report(kind, seed, outcome):
        if outcome.name == "failed":
            failed.append(f"{kind} {seed}: {outcome.reason}")

    counts = run_cases(COUNT, 0, report)
    assert not failed, "\n".join(failed[:5])
    for kind in KINDS:  # the damage is neither nothing nor all
        assert counts[kind, "trained"] > 5 and counts[kind, "refused"] > 5, counts
