import shutil

import pytest

from magistral_jax.tokenizer.bytes import ByteTokenizer
from magistral_jax.tokenizer.files import check_vocabulary, read_tokenizer
from magistral_jax.tokenizer.gguf import GgufTokenizer
from magistral_jax.tokenizer.hf import HfTokenizer
from magistral_jax.types import UserError


def test_a_folder_is_read_by_what_it_holds(folders, gguf_metadata):
    assert isinstance(read_tokenizer(folders / "llama3"), HfTokenizer)
    assert isinstance(read_tokenizer(str(folders / "llama3")), HfTokenizer)
    assert isinstance(read_tokenizer("x.gguf", gguf_metadata("llama3")), GgufTokenizer)
    with pytest.raises(UserError, match="no such file"):
        read_tokenizer("x.gguf")


def test_of_both_files_mistrals_own_is_read(folders, tmp_path):
    both = shutil.copytree(folders / "tekken", tmp_path / "both")
    (both / "tekken.json").write_text("{}")
    with pytest.raises(UserError, match=r"tekken\.json"):
        read_tokenizer(both)


def test_a_place_without_a_tokenizer_is_refused(tmp_path):
    for place in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match=r"model\.source is .* neither tokenizer\.json nor tek"):
            read_tokenizer(place)


def test_a_model_has_a_row_for_every_token():
    tokenizer = ByteTokenizer()
    check_vocabulary(tokenizer, tokenizer.vocab_size, "here")
    check_vocabulary(tokenizer, tokenizer.vocab_size + 1000, "here")
    with pytest.raises(UserError, match=r"here: wrong tokenizer.* 263.* 262.*model\.source"):
        check_vocabulary(tokenizer, tokenizer.vocab_size - 1, "here")


def test_a_model_has_a_row_for_every_stop_token():
    tokenizer = ByteTokenizer()
    tokenizer.stop_ids = (5, 400, 7)
    check_vocabulary(tokenizer, 401, "here")
    with pytest.raises(UserError, match=r"wrong tokenizer.* 400.* 399"):
        check_vocabulary(tokenizer, 400, "here")
