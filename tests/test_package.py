"""The package: light to import, registered with the Auto classes, usable from a copy of the checkout."""

import json
import shutil
import subprocess
import sys

from conftest import ROOT, fresh_process


def test_import_loads_neither_torch_nor_transformers():
    code = (
        "import sys, json, unime\n"
        "heavy = [m for m in ('torch', 'transformers', 'numpy') if m in sys.modules]\n"
        "print(json.dumps({'heavy': heavy, 'names': dir(unime)}))"
    )
    found = fresh_process(code)
    assert found["heavy"] == []
    assert {"UniMEModel", "UniMEProcessor", "UniMERerankerForCausalLM", "UniMEConfig"} <= set(found["names"])


def test_auto_classes_know_the_package_once_a_model_is_imported():
    check = (
        "\nfrom transformers.models.auto import modeling_auto, configuration_auto, processing_auto\n"
        "from unime import UniMEConfig, UniMERerankerConfig\n"
        "import json; print(json.dumps({'config': 'unime' in configuration_auto.CONFIG_MAPPING,"
        "'model': UniMEConfig in modeling_auto.MODEL_MAPPING,"
        "'reranker': UniMERerankerConfig in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING,"
        "'processor': UniMEConfig in processing_auto.PROCESSOR_MAPPING}))"
    )
    for first in (
        "from unime import UniMEModel; from transformers import AutoModel",
        "from transformers import AutoModel, AutoProcessor; from unime import UniMERerankerForCausalLM",
        "import unime.modeling_unime",
        "from unime.modeling_unime import UniMEModel",
    ):
        assert all(fresh_process(first + check).values()), first


THIRD_PARTIES = (
    "from transformers import AutoModel",
    "from transformers import Qwen2VLForConditionalGeneration",
    "from transformers import CLIPModel",
    "from transformers import AutoProcessor, AutoTokenizer",
    "from transformers import Trainer, TrainingArguments",
    "from transformers import LlavaOnevisionForConditionalGeneration",
    "from transformers.modeling_layers import GradientCheckpointingLayer",
    "from sentence_transformers import SentenceTransformer",
    "from sentence_transformers import CrossEncoder",
    "from peft import LoraConfig, get_peft_model",
    "from trl import ModelConfig, TrlParser",
    "import accelerate, datasets",
)


# Each pair of imports has a process of its own, forked once torch is there, which most of an import's time goes to.
IMPORTS = """
import json, multiprocessing, sys, traceback
import torch


def attempt(code):
    try:
        exec(code, {})
    except Exception:
        return f"{code!r}: {traceback.format_exc(limit=-3)}"


if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=1) as pool:
        print(json.dumps([error for error in pool.map(attempt, json.loads(sys.argv[1]), chunksize=1) if error]))
"""


def test_other_libraries_can_be_imported_before_and_after():
    orders = []
    for other in THIRD_PARTIES:
        orders += [f"import unime; {other}; from unime import UniMEModel", f"from unime import UniMEModel; {other}"]
    assert fresh_process(IMPORTS, json.dumps(orders)) == []


def test_importing_the_package_leaves_the_environment_and_loggers_alone():
    code = (
        "import json, logging, os\nbefore = dict(os.environ)\nimport unime\n"
        "import unime.trainers, unime.jobs, unime.mining, unime.data, unime.eval, unime.checkpoints, unime.commands\n"
        "level = logging.getLogger('bitsandbytes.backends.cpu.ops').level\n"
        "print(json.dumps([before == dict(os.environ), level]))"
    )
    assert fresh_process(code) == [True, 0]


def test_with_a_model_class_imported_no_trust_is_needed(embedder, tmp_path):
    embedder.save_pretrained(tmp_path)
    code = (
        "import sys, json\nfrom unime import UniMEModel\nfrom transformers import AutoModel, AutoProcessor\n"
        "model = AutoModel.from_pretrained(sys.argv[1]); processor = AutoProcessor.from_pretrained(sys.argv[1])\n"
        "print(json.dumps([type(model).__module__, type(processor).__module__]))"
    )
    assert fresh_process(code, tmp_path) == ["unime.modeling_unime", "unime.processing_unime"]


def test_remote_code_runs_from_a_copy_of_the_checkout_with_an_odd_name(embedder, tmp_path):
    copy = tmp_path / "UniME-V2 (copy)"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "outputs", "*.egg-info", "__pycache__"))
    saved = tmp_path / "saved"
    embedder.save_pretrained(saved)
    for path in saved.iterdir():
        if path.suffix != ".py":
            shutil.copy(path, copy / path.name)
    code = (
        "import sys, json\nsys.meta_path = [f for f in sys.meta_path if 'editable' not in str(f)]\n"
        "from transformers import AutoModel\nmodel = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "print(json.dumps([type(model).__module__.split('.')[0], model.encode('a red circle').tolist()]))"
    )
    module, embedding = fresh_process(code, copy, HF_MODULES_CACHE=str(tmp_path / "modules"))
    assert module == "transformers_modules"
    assert embedding == embedder.encode("a red circle").tolist()


def test_the_tests_run_in_a_folder_of_any_name(tmp_path):
    copy = tmp_path / "UniME-V2 (copy)"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "outputs", "*.egg-info", "__pycache__"))
    command = [sys.executable, "-m", "pytest", "tests/test_package.py", "-k", "setup_lists"]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_setup_lists_every_package_and_recipe():
    text = (ROOT / "setup.py").read_text()
    for init in ROOT.glob("*/__init__.py"):
        assert f'"{init.parent.name}"' in text
    assert "recipes/*/*.yaml" in text and "accelerate_configs/*.yaml" in text
    assert '"unime.checkpoints": ["chat_template.jinja"]' in text
    assert json.dumps("Apache-2.0") in text


def test_an_installed_package_holds_the_files_it_reads(tmp_path):
    copy = tmp_path / "checkout"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "outputs", "*.egg-info", "build", "__pycache__"))
    command = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", str(tmp_path / "installed")]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    installed = tmp_path / "installed" / "unime"
    template = (installed / "checkpoints" / "chat_template.jinja").read_text(encoding="utf-8")
    assert template == (ROOT / "checkpoints" / "chat_template.jinja").read_text(encoding="utf-8")
    assert (installed / "eval" / "published.yaml").exists() and list(installed.glob("recipes/*/*.yaml"))
