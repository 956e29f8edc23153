# Every target works from a fresh clone: it makes `.venv` and installs what it lacks.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

# One compute thread for each of the two test processes: more only makes them wait for one another.
TEST_ENV := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1

.PHONY: demo shell test test-browser test-int8 test-talking test-extras test-s3 test-annotate test-ray test-data test-doors test-faults test-kills test-wheel test-readme lint bench bench-ttt \
	bench-ckpt bench-gpu bench-memory rehearse-7b clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	PYTHONWARNINGS=ignore $(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# One thread here too: on idle cores two are a fifth faster, beside other work they wait for one another and take far longer.
demo: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/ttt-moshi demo

# A shell in which the commands of the documents work as they are typed.
shell: $(READY)
	PATH="$(CURDIR)/$(BIN):$$PATH" VIRTUAL_ENV="$(CURDIR)/$(VENV)" $${SHELL:-/bin/sh}

test: $(READY)
	$(TEST_ENV) $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

# Every fault at every file operation of a save, ten thousand kills at random moments, thousands of power losses and
# corruptions, with one tally at the end: 8 to 14 minutes on two cores that do little else, 48 on busy ones.
test-faults: $(READY)
	$(TEST_ENV) $(BIN)/pytest tests/checkpoint -n 2

# Fifty SIGKILLs at random moments of training runs, each compared with a run that was never killed.
test-kills: $(READY)
	$(TEST_ENV) $(BIN)/pytest tests/training/test_many_kills.py -m slow -s

# A hundred recordings and as many transcripts as people have them, with a table of what becomes of each. Lengths are compared
# with those of the ffmpeg command where there is one. About a minute and a half on idle cores.
test-data: $(READY)
	$(TEST_ENV) $(BIN)/pytest tests/data/test_messy.py -s

# The page in Debian's Chromium, with a wav file for a microphone; installs what it needs. About two minutes on idle cores.
test-browser: $(READY)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[browser]'
	command -v chromium > /dev/null || (apt-get update && apt-get install --yes chromium)
	$(TEST_ENV) $(BIN)/pytest tests/inference/test_page.py -s

# What needs packages that the other tests do without: data sets in Parquet, also as the library `datasets` writes them (installed
# apart, as the client of s3), and DNSMOS. Three minutes.
test-extras: $(READY)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[parquet,dnsmos]'
	$(TEST_ENV) $(BIN)/pytest tests/evaluation/test_published_questions.py tests/evaluation/test_speech_quality.py -m slow
	$(BIN)/pip install --quiet --target $(VENV)/hf datasets 'huggingface_hub<1'
	$(TEST_ENV) PYTHONPATH=$(VENV)/hf $(BIN)/pytest tests/data/test_rows.py -m slow

# Data at s3://, of a server on this machine. Its client is installed apart: it needs an older python-dateutil than constraints.txt. A minute.
test-s3: $(READY)
	$(BIN)/pip install --quiet --target $(VENV)/s3 s3fs 'moto[server]'
	$(TEST_ENV) PYTHONPATH=$(VENV)/s3 $(BIN)/pytest tests/data/test_s3.py -m slow

# Recognisers of speech: real ones, with the English model of pocketsphinx, a random one of Whisper's form and Silero's. Three minutes.
test-annotate: $(READY)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[annotate,align,separate]'
	$(TEST_ENV) $(BIN)/pytest tests/data/test_annotate.py tests/data/test_align.py tests/data/test_separate.py

# The commands on data over a Ray cluster of this machine, workers killed while they work, against the same commands without:
# minutes on idle cores, a quarter of an hour on busy ones.
test-ray: $(READY)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[ray,align]'
	$(TEST_ENV) $(BIN)/pytest tests/data/test_cluster.py

# Weights in int8; installs torchao, the release for the PyTorch of constraints.txt. Under a minute.
test-int8: $(READY)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[int8]'
	$(TEST_ENV) $(BIN)/pytest tests/inference/test_int8.py

# What needs a machine that does little else: the server ends within two seconds. And a prompt that is remembered beyond ten windows.
test-talking: $(READY)
	$(TEST_ENV) $(BIN)/pytest tests/inference tests/evaluation/test_examiner.py --ignore tests/inference/test_page.py -m slow

# Every command with every kind of bad value, every key of a training with another value, every read of a resume failed,
# signals in every phase of a run, several processes on one folder; one tally at the end.
test-doors: $(READY)
	$(TEST_ENV) $(BIN)/pytest tests/application tests/training/test_every_key.py --ignore tests/application/test_wheel.py --ignore tests/application/test_readme.py -s

# Builds the wheel and uses it outside of the repository, the whole demo included: about ten minutes.
test-wheel: $(READY)
	$(TEST_ENV) $(BIN)/pytest tests/application/test_wheel.py -m slow

# The README's commands, from `make demo` to `ttt-moshi serve`, in a fresh clone with an environment of its own: about twenty minutes.
test-readme: $(READY)
	$(TEST_ENV) $(BIN)/pytest tests/application/test_readme.py -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Speed, memory and capability of the TTT layer on this machine: about five minutes on one idle core.
bench-ttt: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.ttt.run --json runs/bench-ttt.json

# The same layer on a GPU; says so and succeeds where there is none.
bench-gpu: $(READY)
	$(BIN)/python -m benchmarks.ttt.gpu --json runs/bench-gpu.json

# Saving and loading beside the bare disk and other writers, in one run: about five minutes and 12 GB of disk for 2 GB.
bench-ckpt: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/ttt-moshi ckpt bench

bench: bench-ttt bench-ckpt

# Memory beyond the attention window, with controls: recall, likelihood by position on made-up codes and on speech, an hour of
# both, what the evaluation of an hour says of such models, a name that a prompt gives, two facts at once, a finished model that is
# taught, how many pairs each network holds, and what the recipe for 7B needs. Six to seven hours on one idle core; what is finished
# is not done again.
bench-memory: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.memory.run
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.memory.position --language chain
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.memory.position --language speech
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.memory.hour
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.memory.hour --language speech --models window,window-sink,ttt-delta-both,ttt-delta-both-long,ttt-linear-fading,ttt-mlp-fading
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.memory.judged --seeds 0
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.memory.persona --json runs/bench-memory/persona.json
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.memory.needles
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.memory.teach
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.memory.capacity
	OMP_NUM_THREADS=1 $(BIN)/ttt-moshi train --config configs/moshi_7b_ttt_long.yaml --estimate

# The shipped 7B configuration on this machine's processor, with random weights: trains, is killed, resumes and talks.
# 22 GB of free memory and 22 GB of disk; refuses to begin with less.
rehearse-7b: $(READY)
	$(BIN)/python -m benchmarks.moshi.rehearse

clean:
	rm -rf $(VENV) runs
