"""Train the tokenizer of the small catalogue models: `python scripts/make_tokenizer.py`.

A byte-level BPE with 4,096 tokens, learned from the help topics and docstrings of the running
Python's standard library, so that nothing is downloaded and anyone can repeat it. The stored one
was made with Python 3.11. It is part of the models' digests: a new one means new models.
"""

from __future__ import annotations

import ast
import json
import sys
import sysconfig
from pathlib import Path
from pydoc_data.topics import topics
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

if TYPE_CHECKING:
    from collections.abc import Iterator

VOCABULARY = 4096
SPECIAL = ("<unk>", "<s>", "</s>")
TARGET = Path(__file__).parents[1] / "pytest_moeperf" / "catalogue" / "tokenizer"


def texts() -> Iterator[str]:
    """Help topics, then the docstrings of all modules but tests."""
    yield from (topics[name] for name in sorted(topics))
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        inside = path.relative_to(library).parts
        if "site-packages" in inside or "test" in inside or "tests" in inside:
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue  # lib2to3 keeps samples that are wrong on purpose
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                yield ast.get_docstring(node) or ""


def train() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


def main() -> None:
    TARGET.mkdir(exist_ok=True)
    tokenizer = train()
    tokenizer.save(str(TARGET / "tokenizer.json"), pretty=False)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": SPECIAL[0],
        "bos_token": SPECIAL[1],
        "eos_token": SPECIAL[2],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
    }
    (TARGET / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    print(f"{tokenizer.get_vocab_size()} tokens, Python {sys.version.split()[0]}, in {TARGET}")


if __name__ == "__main__":
    main()
