"""`fastmixer tokenize`: pieces over ids, and tokens a word, at three levels."""

import re

import fastmixer as fm


def test_three_levels(run):
    result = run("tokenize", "Alice introduced Bob")
    assert result.exit_code == 0
    kinds = re.findall(r"^(\w+): (\d+) tokens, (\d+\.\d\d) a word, vocabulary ([\d,]+)$", result.output, re.M)
    assert [kind for kind, *_ in kinds] == ["characters", "words", "bpe"]
    assert kinds[0][1:3] == ("20", "6.67") and kinds[1][1:3] == ("3", "1.00")
    pieces, ids = result.output.splitlines()[5:7]
    assert pieces.split() == ["Alice", "␣introduced", "<unk>"] and len(ids.split()) == 3


def test_pieces_stand_over_their_ids_and_long_texts_wrap(run):
    lines = run("tokenize", "the cat sat on the mat " * 8).output.splitlines()
    assert max(map(len, lines)) <= 98
    pieces = [line for line in lines if line.startswith("  ")]
    for top, bottom in zip(pieces[::2], pieces[1::2], strict=True):
        starts = [match.start() for match in re.finditer(r"\S+", bottom)]
        assert starts == [match.start() for match in re.finditer(r"\S+", top)]


def test_a_run_or_a_file_of_ones_own(run, trained, tmp_path):
    folder, _ = trained
    result = run("tokenize", "Alice", "--tokenizer", folder)
    ids = fm.load(folder).tokenizer.encode("Alice")
    assert result.exit_code == 0 and " ".join(map(str, ids)) in re.sub(r" +", " ", result.output)
    path = tmp_path / "own.txt"
    path.write_text("zebra zebra")
    assert "vocabulary" in run("tokenize", "zebra", "--file", path).output
    result = run("tokenize", "zebra", "--file", tmp_path / "absent.txt")
    assert result.exit_code == 1 and "absent.txt is not a file" in result.output
