"""Pieces and windows in the place of documents, against lists written out by hand."""

import pytest

from alignkit.data.documents import document_sequences
from alignkit.data.tokenizer import train_tokenizer
from alignkit.records import Document
from alignkit.windows import Crops, Pieces

TOKENIZER = train_tokenizer(["abc"], "character", 30)
DOCUMENTS = document_sequences([Document(text="abca"), Document(text="cab")], TOKENIZER, max_length=4)
BOS, EOS = TOKENIZER.bos_token_id, TOKENIZER.eos_token_id
A, B, C = TOKENIZER.convert_tokens_to_ids(list("abc"))


def test_pieces_are_those_of_all_documents_in_their_order() -> None:
    pieces = Pieces(DOCUMENTS)
    assert len(pieces) == 4
    assert [list(piece.ids) for (piece,) in pieces] == [[BOS, A, B, C], [C, A, EOS], [BOS, C, A, B], [B, EOS]]
    assert pieces[1:3] == [pieces[1], pieces[2]]
    with pytest.raises(IndexError):
        pieces[4]


def test_crops_are_all_windows_of_the_documents_one_after_the_other() -> None:
    crops = Crops(DOCUMENTS, length=4)
    stream = [BOS, A, B, C, A, EOS, BOS, C, A, B, EOS]
    assert [list(piece.ids) for (piece,) in crops] == [stream[n : n + 4] for n in range(8)] and len(crops) == 8
    assert crops[6:] == [crops[6], crops[7]]
    (piece,) = crops[3]
    assert piece.weights == [0.0, 1.0, 1.0, 1.0]
    assert piece.columns["bytes"] == pytest.approx(7 * 3 / 10)  # 7 bytes over the stream's 10 predictions
    (whole,) = Crops(DOCUMENTS, length=40)
    assert list(whole[0].ids) == stream and whole[0].columns["bytes"] == pytest.approx(7)
    with pytest.raises(IndexError):
        crops[8]
