"""A sentencepiece tokenizer (LLaMA 2, Mistral) in the GGUF file: llama.cpp splits text as sentencepiece does."""

from __future__ import annotations

from pathlib import Path

from tests.support.exported import random_selection, slice_folder
from tests.support.llama_cpp_use import ask
from tests.support.sentencepiece_tokenizer import train_sentencepiece
from tests.support.tiny import write_text_files
from tests.support.tiny_families import write_family_model
from transact.export.folder import write_export
from transact.export.gguf import write_gguf

TEXTS = ["def main(argument) -> None:", "  two  spaces\nand a line", "Übergröße 世界 🙂"]  # the last one by bytes


def test_text_is_split_as_sentencepiece_does(tmp_path: Path) -> None:
    parent = write_family_model(tmp_path / "parent", "mistral")
    train_sentencepiece(parent, write_text_files(tmp_path / "text")[0])
    selection = random_selection(parent, head_dim=8, intermediate_size=96)
    folder = slice_folder(parent, tmp_path / "sliced", selection)
    (tmp_path / "export").mkdir()
    write_export(folder, tmp_path / "export", "float32", "# a model\n")
    write_gguf(tmp_path / "export", tmp_path / "model.gguf", "f16", "model")
    answer = ask(tmp_path / "model.gguf", tmp_path, texts=TEXTS)
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(parent / "tokenizer.model"))
    for number, each in enumerate(TEXTS):
        assert answer["texts"][number] == processor.encode(each), each
