"""Models, runs, artifacts and arguments that are wrong, and what the command line must say of each."""

from __future__ import annotations

from tests.integration.wrong_inputs import CHATS, CONFIG, Case, lines, set_case

MODELS = [
    set_case("no such model folder", "model.name=./nowhere model.random_init=null", "'./nowhere'", "no such folder"),
    set_case("folder without a model", "model.name=./runs model.random_init=null", "runs", "config.json"),
    Case(
        "pickle weights",
        "train config.yaml -s model.name=./pickled -s model.random_init=null",
        ("pickled", "pickle", "save_pretrained"),
        {"pickled/config.json": "{}", "pickled/pytorch_model.bin": "x"},
    ),
    Case(
        "no weights",
        "train config.yaml -s model.name=./bare -s model.random_init=null",
        ("bare", "no .safetensors weights"),
        {"bare/config.json": "{}"},
    ),
    Case(
        "broken model config",
        "train config.yaml -s model.name=./torn -s model.random_init=null",
        ("torn", "configuration cannot be read"),
        {"torn/config.json": "{", "torn/model.safetensors": "x"},
    ),
    set_case(
        "package is not installed",
        "model.name=package:llm_nothing/a.gguf model.random_init=null",
        "'llm_nothing' is not installed",
        "pip install llm_nothing",
    ),
    set_case(
        "package without the file",
        "model.name=package:yaml/a.gguf model.random_init=null",
        "no GGUF file 'a.gguf'",
    ),
    set_case(
        "hub out of reach",
        "model.name=t5-small model.random_init=null",
        "'t5-small'",
        "cannot be reached",
        "local folder",
    ),
    set_case("no hub name", "model.name=a--b?c model.random_init=null", "a--b?c"),
    set_case(
        "T5 continues no text",
        "model.task_type=language-modeling dataset.text_column=question",
        "model.task_type",
        "causal",
    ),
    Case(
        "no chat template",
        "train config.yaml -s model.task_type=chat -s model.random_init.family=llama -s dataset.train_file=chats.jsonl",
        ("no chat template", "Instruct"),
        {"chats.jsonl": lines(CHATS)},
    ),
    set_case(
        "generation type contradicts",
        "model.generation_type=causal",
        "generation_type 'causal' contradicts",
        "seq2seq",
    ),
    set_case("unknown architecture option", "model.random_init.options.d_modell=3", "'d_modell'", "d_model"),
    set_case(
        "no language",
        "model.task_type=translation dataset.input_column=question dataset.target_column=answer",
        "dataset.source_language",
    ),
    set_case(
        "doctor: no such LoRA target",
        "lora={target_modules:[query]}",
        "target_modules",
        "'query'",
        "it has: ",
        command="doctor",
    ),
    set_case("no such LoRA target", "lora={target_modules:[query]}", "target_modules", "'query'", "it has: "),
    set_case(
        "doctor: T5 continues no text",
        "model.task_type=language-modeling dataset.text_column=question",
        "model.task_type",
        "causal",
        command="doctor",
    ),
    set_case(
        "doctor: hub out of reach",
        "model.name=acme/unknown model.random_init=null",
        "acme/unknown",
        "cannot be reached",
        command="doctor",
    ),
]

RUNS = [
    Case("nothing to resume", "train config.yaml --resume gone", ("no run 'gone'", "runs")),
    Case("name of a run to resume is a number", "train config.yaml --resume 2026", ("no run '2026'",)),
    Case("run exists", "train config.yaml -s output.run_name=old", ("run 'old' exists", "--resume")),
    Case(
        "resume with another config",
        "train config.yaml --resume old -s training.num_epochs=9",
        ("'training' section", "num_epochs: 1 → 9"),
    ),
    Case(
        "resume of a damaged run",
        "train config.yaml --resume torn",
        ("runs/torn/config.yaml", "damaged"),
        {"runs/torn/config.yaml": "model: ["},
    ),
    set_case("storage is a file", "output.storage_path=rows.jsonl", "output.storage_path", "rows.jsonl"),
    set_case("storage of an unknown kind", "output.storage_path=nope://bucket", "output.storage_path", "nope"),
    set_case(
        "artifact goes below a file",
        "output.artifact_path=rows.jsonl/a",
        "output.artifact_path",
        "rows.jsonl",
    ),
    set_case("run name leads elsewhere", "output.run_name=../elsewhere", "output.run_name", "'../elsewhere'"),
]

ARTIFACTS = [
    Case("generate: no such artifact", "generate ./absent Why?", ("absent", "no such folder")),
    Case("generate: no artifact", "generate ./runs Why?", ("runs", "manifest.json", "rayloom train")),
    Case(
        "generate: damaged",
        "generate ./damaged Why?",
        ("damaged", "model/", "has changed", "publish it again"),
    ),
    Case("generate: file missing", "generate ./halved Why?", ("halved", "is missing", "publish it again")),
    Case(
        "generate: unknown parameter",
        "generate ./good Why? -p max_tokens=3",
        ("'max_tokens'", "did you mean 'max_new_tokens'"),
    ),
    Case("generate: value makes no sense", "generate ./good Why? -p num_beams=none", ("num_beams", "'none'")),
    Case(
        "generate: parameter without value",
        "generate ./good Why? -p num_beams",
        ("--param 'num_beams'", "NAME=VALUE"),
    ),
    Case(
        "generate: endless number",
        f"generate ./good Why? -p prefix={'9' * 5000}",
        ("--param", "not valid YAML"),
    ),
    Case("generate: no such device", "generate ./good Why? --device tpu9000", ("device 'tpu9000'", "'cpu'")),
    Case("generate: no prompt file", "generate ./good -f absent.txt", ("--file absent.txt", "cannot be read")),
    Case("generate: hub out of reach", "generate t5-small Why?", ("'t5-small'", "cannot be reached")),
    Case("evaluate: no such artifact", "evaluate ./absent", ("absent", "no such folder")),
    Case("evaluate: damaged", "evaluate ./damaged", ("damaged", "has changed")),
    Case("evaluate: unknown split", "evaluate ./good --split tset", ("--split 'tset'", "validation")),
    Case("evaluate: its data is gone", "evaluate ./good", ("good", "config.yaml")),
    Case("evaluate: training config", "evaluate config.yaml", ("config.yaml", "artifact: …")),
    Case(
        "evaluate: unknown key in a job",
        "evaluate job.yaml",
        ("job.yaml, line 2, split", "'splits'"),
        {"job.yaml": "artifact: a\nsplit: [test]\n"},
    ),
    Case("serve: no such artifact", "serve ./absent", ("absent", "no such folder")),
    Case("serve: damaged", "serve ./damaged", ("damaged", "has changed")),
    Case("serve: no model", "serve ./runs", ("runs", "config.json")),
    Case("serve: hub out of reach", "serve t5-small", ("'t5-small'", "cannot be reached")),
    Case("serve: no batch", "serve ./good --max-batch-size 0", ("max_batch_size", "greater than or equal to 1")),
    Case("submit: outside", "submit ../outside.yaml", ("outside.yaml", "inside the working folder")),
    Case("submit: no such job", "submit absent.yaml", ("absent.yaml", "no such file")),
    Case(
        "submit: unknown key",
        "submit c.yaml",
        ("c.yaml, line 10, output.retries",),
        {"c.yaml": CONFIG + "  retries: 3\n"},
    ),
    Case(
        "submit: results would be lost",
        "submit config.yaml --address http://cluster:8265",
        ("output.storage_path", "all nodes share"),
    ),
    Case(
        "submit: no address",
        "submit config.yaml --address nonsense -s output.storage_path=/shared",
        ("--address", "'nonsense'", "http://"),
    ),
    Case("init: folder is taken", "init runs", ("runs", "not empty", "--force")),
    Case("init: name of a file", "init rows.jsonl", ("rows.jsonl", "file of this name")),
    Case("init: below a file", "init rows.jsonl/new", ("rows.jsonl", "is a file")),
    Case("init: unusable name", "init a?b", ("'a?b'", "letters")),
    Case("init: T5 continues no text", "init new --model t5-small --task language-modeling", ("causal", "gpt2")),
    Case("init: GPT-2 does not chat", "init new --model gpt2 --task chat", ("gpt2", "no chat template")),
]

USAGE = [
    Case("unknown command", "trian config.yaml", ("trian", "train"), usage=True),
    Case("no config named", "train", ("Missing argument 'config'",), usage=True),
    Case("unknown option", "train config.yaml --epochs 3", ("--epochs",), usage=True),
    Case("init: unknown task", "init new --task poetry", ("poetry", "summarization"), usage=True),
    Case("serve: no such port", "serve ./good --port 99999", ("--port", "65535"), usage=True),
    Case("doctor: no memory", "doctor config.yaml --memory 0", ("--memory",), usage=True),
]
