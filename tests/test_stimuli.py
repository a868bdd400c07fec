"""Stimuli: what the model reads of running text and of tables, and what is refused with its place."""

import json

import numpy as np
import pandas as pd
import pytest

from clada.errors import InputError
from cladastats.language import language
from cladastats.texts.stimuli import attached, read_texts, sides, split_words, table_texts
from cladastats.texts.table import _as_table
from cladastats.texts.tablefile import TableFile, as_numbers, read_data, read_table

ENGLISH = language()


def stimuli_of(path, code="en", **options):
    return table_texts(read_table(path), path.name, language(code), **options)


def framed(frame, code="en", **options):
    return table_texts(_as_table(frame), "the frame", language(code), **options)


def refusal(function, *arguments, **options):
    with pytest.raises(InputError) as refused:
        function(*arguments, **options)
    return str(refused.value)


# Running text


@pytest.mark.parametrize("content", ["\ufeffIt rained.\r\n\r\n  They\tleft. \r\n", "It rained.\r\r  They\tleft.\r"])
def test_the_model_reads_paragraphs_as_they_stand_and_neither_marks_nor_windows_line_ends(tmp_path, content):
    path = tmp_path / "story.txt"
    path.write_bytes(content.encode())
    found = read_texts(path, ENGLISH)
    (text,) = found.texts
    assert (text.text_id, text.words) == ("story", ("It", "rained.", "They", "left."))
    assert text.gaps == ("", " ", "\n\n  ", "\t")
    assert text.characters == "It rained.\n\n  They\tleft."
    assert found.notes == ()


def test_wrapped_lines_are_said(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("The man who\nhad left,\nsaid that it\nwas late.\nGood.\n")
    assert read_texts(path, ENGLISH).notes == (
        "the model reads line breaks within sentences as they stand; join lines that are only wrapped",
    )


def test_utf_16_with_its_mark_is_read_and_said(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("Ein Häuschen.".encode("utf-16"))
    found = read_texts(path, language("de"))
    assert found.texts[0].words == ("Ein", "Häuschen.")
    assert found.notes == (f"{path} is read as UTF-16",)


def test_ids_of_jsonl_are_strings_as_written(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text_id": "001", "text": "A b."}\n\n{"text_id": 1, "text": "C\u2028d."}\n{"text": "E"}\n'
                    '{"text_id": null, "text": "F"}\n')  # fmt: skip
    found = read_texts(path, ENGLISH)
    assert [(text.text_id, text.words) for text in found.texts] == [
        ("001", ("A", "b.")), ("1", ("C", "d.")), ("4", ("E",)), ("5", ("F",)),
    ]  # fmt: skip
    assert found.notes == (f"{path}: 2 texts without text_id are named by the numbers of their lines",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"txt": "no"}', ", line 1: no text in field 'text' (there: 'txt'); give it 'text'"),
        ("a.jsonl", b"[1]\n", ", line 1: no text in field 'text' (there: no fields); give it 'text'"),
        ("a.jsonl", b'{"text": "half \\ud800 one"}', " holds half a character (a lone surrogate); mend the text"),
        ("a.jsonl", b'{"text": "a"}\n{"text": " "}\n', ", line 2: its text has no words; remove the line"),
        ("a.jsonl", b"\n", " has no words; give another file"),
        ("a.jsonl", b'{"text_id": 1, "text": "a"}\n{"text_id": "1", "text": "b"}',
         ", lines 1 and 2: both texts are '1' (a line without text_id is named by its number); give each an id of its "
         "own"),
        ("a.jsonl", b'{"text_id": "2", "text": "a"}\n{"text": "b"}',
         ", lines 1 and 2: both texts are '2' (a line without text_id is named by its number); give each an id of its "
         "own"),
        ("a.jsonl", b'{"text_id": 1.5, "text": "a"}', ", line 1: text_id is 1.5; give text or a whole number"),
        ("a.jsonl", b'{"text_id": true, "text": "a"}', ", line 1: text_id is true; give text or a whole number"),
        ("a.jsonl", b'{"text_id": "", "text": "a"}', ', line 1: text_id is ""; give text or a whole number'),
        ("a.jsonl", b'{"text_id": [1], "text": "a"}', ", line 1: text_id is [1]; give text or a whole number"),
        ("a.txt", b" \n ", " has no words; give another file"),
        ("a.txt", b"", " has no words; give another file"),
        ("a.txt", b"\xff\xfe\x00", " is not UTF-8 (byte 0); convert it, with iconv for instance"),
        ("a.txt", b"caf\xe9", " is not UTF-8 (byte 3); convert it, with iconv for instance"),
        ("a.txt", "ab".encode("utf-16-le"), " holds zero bytes, as UTF-16 without a mark does; save it as UTF-8"),
        ("a.csv", b"word\na\n", " is a table; give it with --table"),
        ("a.TSV", b"word\na\n", " is a table; give it with --table"),
        ("a.xlsx", b"PK", " is a table; give it with --table"),
        ("a.json", b"[]", " is JSON; give a line for each text (.jsonl), or a table with --table"),
        ("a.txt", b'\n[{"text": "a"}]', " is JSON; give a line for each text (.jsonl), or a table with --table"),
        ("a.txt", b'{"text": "a b"}\n', " is JSON; give a line for each text (.jsonl), or a table with --table"),
        ("a.docx", b"PK", " is a document; save it as plain text, in UTF-8"),
        ("a.html", b"<p>a", " has markup; save it as plain text, in UTF-8"),
        ("a.txt", b"item\tword\n1\tThe\n1\tdog\n", " looks like a table (tabs in every line); give it with --table"),
        ("a.txt", b"item,word\n1,The\n1,dog\n", " looks like a table (commas in every line); give it with --table"),
        ("a.txt", b"item;word\r\n1;The\r\n", " looks like a table (semicolons in every line); give it with --table"),
    ],
)  # fmt: skip
def test_texts_that_cannot_be_read(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    assert refusal(read_texts, path, ENGLISH) == f"{path}{message}"


@pytest.mark.parametrize(
    "prose",
    ["[Laughs] Well, no.", "{A} set.", "Yes, he said,\nno, she said,", "\tIndented.\n\tToo.", "1,000 men.", "a\tb"],
)
def test_prose_is_no_table_and_no_json(tmp_path, prose):
    path = tmp_path / "a.txt"
    path.write_text(prose)
    assert " ".join(read_texts(path, ENGLISH).texts[0].words) == " ".join(prose.split())


def test_files_that_are_not_there(tmp_path):
    path = tmp_path / "none.txt"
    assert refusal(read_texts, path, ENGLISH) == f"cannot read {path}: No such file or directory; check the path"
    assert refusal(read_table, tmp_path / "none.csv").startswith(f"cannot read {tmp_path / 'none.csv'}: No such file")
    assert refusal(read_table, tmp_path / "none.xlsx").startswith(f"cannot read {tmp_path / 'none.xlsx'}: No such file")


# Scripts without white space


@pytest.mark.parametrize(
    ("code", "text"),
    [("zh", "我喜欢猫。你呢？\n他不喜欢。"), ("zh", "我喜欢iPhone 15 和一只很大的非常漂亮的猫"),
     ("ja", "猫が好きです。"),
     ("th", "ฉันรักแมวสีดำตัวใหญ่ที่บ้าน")],
)  # fmt: skip
def test_unspaced_text_is_refused_without_segmentation(tmp_path, code, text):
    path = tmp_path / "a.txt"
    path.write_text(text, encoding="utf-8")
    remedy = "put white space between them" if code == "th" else "use --segment"
    message = f"{path} has no white space between its words; {remedy}, or give --table with a row per word"
    assert refusal(read_texts, path, language(code)) == message
    assert "give its code with --language" in refusal(read_texts, path, ENGLISH)


def test_segmented_text_is_what_stands_in_the_file():
    text = "他說：「我愛你。」\n\n　　你呢？iPhone 15！"
    words, gaps = split_words(text, language("zh"), True)
    assert words == ("他", "說：", "「我愛你。」", "你", "呢？", "iPhone", "15！")
    assert "".join(gap + word for gap, word in zip(gaps, words, strict=True)) == text


def test_spaces_of_a_list_of_words_are_not_read(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("我 喜欢 iPhone 15 和 猫 。\n你 呢 ？", encoding="utf-8")
    found = read_texts(path, language("zh"))
    assert found.texts[0].words == ("我", "喜欢", "iPhone", "15", "和", "猫", "。", "你", "呢", "？")
    assert found.texts[0].characters == "我喜欢iPhone 15和猫。\n你呢？"
    assert found.notes == ("spaces between words of Chinese tell them apart; the model reads them without",)


def test_japanese_phrases_and_a_chinese_quotation_are_words(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("太郎が 図書館で 本を 読んだ。", encoding="utf-8")
    assert len(read_texts(path, language("ja")).texts[0].words) == 4
    path.write_text("He said 我喜欢猫你呢他不喜欢 and left the room.", encoding="utf-8")
    assert len(read_texts(path, ENGLISH).texts[0].words) == 7


# Punctuation


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ('" Well , " he said ( twice ) .', '"Well," he said (twice).'),
        ("« Oui » , dit - il .", "«Oui», dit - il."),
        ("» Ja « , sagt er .", "»Ja«, sagt er."),
        ("„ Ja “ , sagt er .", "„Ja“, sagt er."),
        ("“ Yes , ” he said …", "“Yes,” he said…"),
        ("`` Yes '' , he 's", "``Yes'', he 's"),
        ("¿ Qué ?", "¿Qué?"),
        ("He said : \" ' No . ' \" * 5 %", "He said: \"'No.'\" * 5 %"),
    ],
)
def test_punctuation_apart_is_read_as_writers_write_it(words, text):
    frame = pd.DataFrame({"word": words.split(), "item": 1})
    found = framed(frame, by=("item",))
    assert found.texts[0].characters == text
    assert found.texts[0].words == tuple(words.split())
    number = sum(map(bool, sides(words.split())))
    assert found.notes[0].startswith(f"rows of punctuation alone ({number}): the model reads closing marks right after")
    assert " ".join(attached(words.split())) == text


def test_words_with_punctuation_attached_are_words():
    found = framed(pd.DataFrame({"word": ["“Well,”", "he", "said", "...no."], "item": 1}), by=("item",))
    assert found.texts[0].characters == "“Well,” he said ...no."
    assert found.notes == ()


# Tables


TABLE = [("item", "cond", "word", "rt"), ("001", "a", "The", "1,5"), ("001", "a", '"dog"', "2,25"),
         ("001", "b", "NA", "3"), ("001", "b", "null", "NA"), ("2", "a", "None", "4")]  # fmt: skip


def delimited(delimiter, quoted=True):
    lines = []
    for row in TABLE:
        cells = [f'"{cell.replace(chr(34), chr(34) * 2)}"' if quoted else cell for cell in row]
        lines.append(delimiter.join(cells))
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "mark"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"], ids=["unix", "windows", "mac"])
@pytest.mark.parametrize(
    ("name", "delimiter", "quoted", "notes"),
    [
        ("t.csv", ",", True, []),
        ("t.csv", ";", True, ["{} has semicolons between its columns"]),
        ("t.csv", "\t", False, ["{} has tabs between its columns"]),
        ("t.tsv", "\t", True, []),
        ("t.txt", "\t", True, ["{} has tabs between its columns"]),
    ],
)
def test_cells_are_as_they_are_written(tmp_path, name, delimiter, quoted, notes, ends, mark):
    path = tmp_path / name
    path.write_bytes(mark + delimited(delimiter, quoted).replace("\n", ends).encode())
    table = read_table(path)
    expected = TABLE
    if not quoted:  # marks around a cell are quoting in every reader of CSV
        expected = [tuple(cell.strip('"') for cell in row) for row in TABLE]
    assert [tuple(table.frame.columns), *table.frame.itertuples(index=False, name=None)] == expected
    assert tuple(table.places) == ("line 2", "line 3", "line 4", "line 5", "line 6")
    decimal = f"{path} has numbers with a decimal comma (rt)"
    if not quoted:
        taken = f"{path}: quotation marks around a cell are no part of it, 1 times; write three where they are: "
        taken += '"""Yes"""'
        notes = [taken, *notes]
    assert list(table.notes) == [*[note.format(path) for note in notes], decimal]


def test_texts_of_a_table_keep_its_columns_and_order(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(delimited(";"))
    found = stimuli_of(path, by=("item", "cond"))
    assert [(text.text_id, text.words) for text in found.texts] == [
        ("001_a", ("The", '"dog"')), ("001_b", ("NA", "null")), ("2_a", ("None",)),
    ]  # fmt: skip
    assert found.word_column == "word"
    assert list(found.frame["rt"]) == ["1,5", "2,25", "3", "NA", "4"]


@pytest.mark.parametrize("word", ['"', '"Hello', 'said."', '5" wide', "'"])
def test_marks_that_tables_with_tabs_do_not_quote(tmp_path, word):
    path = tmp_path / "t.tsv"
    path.write_text(f"item\tword\n1\tThe\n1\t{word}\n1\tend\n1\t{word}\n1\tx\n")
    assert list(read_table(path).frame["word"]) == ["The", word, "end", word, "x"]


def test_a_region_is_one_unit_and_a_cell_may_hold_a_delimiter_or_a_line_break(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('item,word\n1,"The old,\nold man "\n1,the boats.\n')
    found = stimuli_of(path, by=("item",))
    assert found.texts[0].words == ("The old,\nold man", "the boats.")
    assert found.texts[0].characters == "The old,\nold man the boats."
    assert list(found.frame["word"]) == ["The old,\nold man ", "the boats."]  # the column is as it was


def test_a_table_of_words_alone_has_commas_in_them(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("sentence\nYes, he left.\nNo.\n")
    found = stimuli_of(path, word_column="sentence")
    assert [text.words for text in found.texts] == [("Yes,", "he", "left."), ("No.",)]
    assert found.notes == ("every row is a text of its own, since --by names no columns that make one",)
    assert list(found.frame["sentence"]) == ["Yes, he left."] * 3 + ["No."]
    assert found.word_column is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"item,word\n1,The\n1\n", ", line 3: 1 cells, and the header has 2; quote cells with a delimiter in them"),
        (b"item,word\n1,Yes, no\n1,x\n",
         ", line 2: 3 cells, and the header has 2; quote cells with a delimiter in them"),
        (b"item,word\n1,1,a\n2,1,b\n", ", line 2: 3 cells, and the header has 2; R writes such a header, without "
         "row.names = FALSE: write the table again with it"),
        (b'item,word\n1,"The\n1,dog\n', ' has a quotation mark that is never closed, or text after a closed one, near '
         'line 2; write the word " as """" in a table with commas'),
        (b"item,word\n", " has no row below its header; give a table with rows"),
        (b"\n\n", " is empty; give a table whose first row names the columns"),
        (b"", " is empty; give a table whose first row names the columns"),
        (b',""\n1,a\n', " is empty; give a table whose first row names the columns"),
        (b"word,word\na,b\n", " has more than one column 'word'; rename all but one"),
        (b"sep=;\nitem;word\n1;a\n", " begins with the line 'sep=;'; remove it"),
        (b"item,word\n1,caf\xe9\n", " is not UTF-8 (byte 15); convert it, with iconv for instance"),
        ("item,word\n1,a\n".encode("utf-16-le"), " holds zero bytes, as UTF-16 without a mark does; save it as UTF-8"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_read(tmp_path, content, message):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    assert refusal(read_table, path) == f"{path}{message}"


def test_row_names_as_r_writes_them(tmp_path):
    """`write.table` gives their column no cell in the header, `write.csv` an empty one."""
    path = tmp_path / "t.csv"
    path.write_text('"item","word"\n"1","a","The"\n"2","a","dog"\n')
    table = read_table(path)
    assert table.frame.to_dict("list") == {"row_name": ["1", "2"], "item": ["a", "a"], "word": ["The", "dog"]}
    assert table.notes == (f"{path}: its first column, which R gives no name, is called row_name",)
    path.write_text('"","item","word"\n"1","a","The"\n"2","a","dog"\n')
    assert list(read_table(path).frame.columns) == ["unnamed_1", "item", "word"]


def test_rows_have_the_lines_they_begin_at(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('\nitem,word\n1,"The\nold"\n\n,\n1,dog\n1, \n')
    table = read_table(path)
    assert list(table.frame["word"]) == ["The\nold", "dog", " "]
    assert tuple(table.places) == ("line 3", "line 7", "line 8")


@pytest.mark.parametrize(
    ("content", "decimal"),
    [('a,rt\n1,"1,5"\n2,"1,234"\n', ","), ('a,rt\n1,"1,234"\n', "."), ("a;rt\n1;1,234\n", ","), ("a;rt\n1;x,5\n", ".")],
)
def test_commas_of_decimals_are_told_from_those_of_thousands(tmp_path, content, decimal):
    path = tmp_path / "t.csv"
    path.write_text(content)
    assert read_table(path).decimal == read_data(path).decimal == decimal


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (("1,5", "2"), [1.5, 2]),
        (("1.5", "2"), [1.5, 2]),  # a measured column beside a user's own
        (("7.391344", "NA"), [7.391344, None]),
        (("1.234", "2.000"), None),  # of thousands, as all its points could be
        (("1.5", "2,5"), None),
    ],
)
def test_a_column_of_points_beside_decimal_commas(cells, expected):
    column = pd.Series(cells)
    if expected is None:
        with pytest.raises(InputError, match=r"the column rt of t\.csv holds what is no number"):
            as_numbers(column, "rt", "t.csv", ",")
    else:
        pd.testing.assert_series_equal(as_numbers(column, "rt", "t.csv", ","), pd.Series(expected, dtype=float))


def test_data_that_windows_wrote_are_read_and_stimuli_are_not(tmp_path):
    """The first byte that is no UTF-8 lies behind the first piece of the file that is looked at."""
    path = tmp_path / "t.csv"
    content = ("item,word\n" + "1,Haus\n" * 200_000 + "1,Häuser\n").encode("cp1252")
    path.write_bytes(content)
    where = content.index(b"\xe4")
    assert refusal(read_table, path) == f"{path} is not UTF-8 (byte {where:,}); convert it, with iconv for instance"
    table = read_data(path, ["word"])
    assert list(table.frame) == ["word"]
    assert table.frame["word"].iloc[-1] == "Häuser"
    assert table.notes == (f"{path} is not UTF-8 and is read as Windows-1252",)
    path.write_bytes(("a" * (2**20 - 1) + "é").encode() + b"\nb\n")  # a character that lies in two pieces
    assert len(read_table(path).frame) == 1
    path.write_text(f"a\n{'b' * (2**24 + 1)}\n")
    assert refusal(read_table, path) == f"{path} has a cell of more than 16,777,216 characters; give it in parts"


def test_marks_of_a_header_are_those_of_its_cells(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text('"item"\t"word"\n"1"\t"The\nold"\n"1"\tNA\n')
    table = read_table(path)
    assert list(table.frame["word"]) == ["The\nold", "NA"]
    assert table.notes == ()


def test_columns_that_a_spreadsheet_left_empty_are_none(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("item,word,,\n1,The,,\n1,dog,,\n")
    assert list(read_table(path).frame.columns) == ["item", "word"]


def test_a_table_of_excels_unicode_text(tmp_path):
    path = tmp_path / "t.txt"
    path.write_bytes("item\tword\n1\tHäuser\n".encode("utf-16"))
    table = read_table(path)
    assert list(table.frame["word"]) == ["Häuser"]
    assert table.notes == (f"{path} is read as UTF-16", f"{path} has tabs between its columns")


@pytest.mark.parametrize("name", ["t.jsonl", "t.json", "t.xls", "t", "t.CSV.gz"])
def test_what_is_no_table(tmp_path, name):
    message = f"{tmp_path / name} is not a table that can be read; give one of .csv, .tsv, .txt, .xlsx, .parquet"
    assert refusal(read_table, tmp_path / name) == message


def test_excel(tmp_path):
    path = tmp_path / "t.xlsx"
    frame = pd.DataFrame({"item": ["001", "001", "2"], "word": ["NA", "=x", 1999], "rt": [1.5, None, 2], "": [""] * 3})
    with pd.ExcelWriter(path) as writer:
        frame.to_excel(writer, index=False, sheet_name="mine")
        frame.to_excel(writer, index=False, sheet_name="other")
        for row in writer.sheets["mine"].iter_rows():
            for cell in row:
                cell.data_type = "s" if cell.data_type == "f" else cell.data_type
    table = read_table(path)
    assert table.notes == (f"{path} has 2 sheets; 'mine' is read",)
    assert tuple(table.places) == ("row 2", "row 3", "row 4")
    found = table_texts(table, path, ENGLISH, by=("item",))
    assert [(text.text_id, text.words) for text in found.texts] == [("001", ("NA", "=x")), ("2", ("1999",))]
    assert list(found.frame["rt"]) == [1.5, "", 2]
    path.write_bytes(b"nothing")
    assert refusal(read_table, path) == f"{path} is not an Excel workbook; save it as .xlsx again"


def test_a_truth_value_of_excels_is_no_word(tmp_path):
    path = tmp_path / "t.xlsx"
    pd.DataFrame({"item": ["1", "1"], "word": ["is", True]}).to_excel(path, index=False)
    message = f"{path.name}, row 3: the word is True; make its column one of text"
    assert refusal(stimuli_of, path, by=("item",)) == message


def test_parquet_keeps_its_types(tmp_path):
    path = tmp_path / "t.parquet"
    pd.DataFrame({"item": [1, 1], "word": ["a", "b"], "rt": [1.5, np.nan]}).to_parquet(path)
    found = stimuli_of(path, by=("item",))
    assert found.texts[0].text_id == "1"
    assert found.frame["rt"].dtype == float
    path.write_bytes(b"nothing")
    assert refusal(read_table, path) == f"{path} is not a parquet file; write it again"


def rows(*words, **columns):
    return TableFile(pd.DataFrame({"word": words, **columns}), tuple(f"line {i}" for i in range(2, len(words) + 2)))


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (rows("a", "b", item=[1, 2]), {"word_column": "Wort"}, "t has no column 'Wort' (columns: word, item)"),
        (rows("a", "b", item=[1, 2]), {"by": ("items",)}, "t has no column 'items' (columns: word, item)"),
        (rows("a", "b", item=[1, 2]), {"by": ("item",), "context_column": "c"},
         "t has no column 'c' (columns: word, item)"),
        (TableFile(pd.DataFrame({"Wort": ["a"]}), ("line 2",)), {},
         "t has no column 'word'; name the column of words with --word-column (columns: Wort)"),
        (rows("a", " ", item=[1, 1]), {"by": ("item",)}, "t, line 3: the word is empty; write one or remove the row"),
        (rows("a", None, item=[1, 1]), {"by": ("item",)}, "t, line 3: the word is empty; write one or remove the row, "
         "or read the words NA and null with keep_default_na=False"),
        (rows("a", "b", item=["x", ""]), {"by": ("item",)},
         "t, line 3: item is empty; fill it in, since --by names it"),
        (rows("a", "b", "c", item=[1, 2, 1]), {"by": ("item",)},
         "t, line 4: text '1' began at line 2 and is interrupted; put its rows together, or add the column that tells "
         "both apart to --by"),
        (rows(*("The dog barked. " * 3).split(), item=[1] * 9), {"by": ("item",)},
         "t, line 2: text '1' is the same 3 words 3 times; if these are several readers', add their column to --by"),
        (rows("a", "b", item=[1, 1], c=["x", "y"]), {"by": ("item",), "context_column": "c"},
         "t, line 3: the context of text '1' is another one than at line 2; give all rows of a text the same"),
        (rows("a", "b", item=[1, 1]), {}, "t has one word in 2 of 2 rows; name the columns that make a text with --by "
         "(columns: word, item)"),
        (rows("The man", "saw", "it", item=[1, 1, 1]), {},
         "t has one word in 2 of 3 rows; name the columns that make a text with --by (columns: word, item)"),
        (rows("a", "b", item=[1, 1]), {"by": ("item",), "segment": True},
         "t has a row per word with --by; leave out --segment, or give a text in each row"),
        (TableFile(pd.DataFrame({"word": ["half \ud800"]}, dtype=object), ("line 2",)), {},
         "t holds half a character (a lone surrogate); mend the text"),
        (rows("Привет", "мир", item=[1, 1]), {"by": ("item",)},
         "the text is written in Cyrillic letters, which is not English; give its code with --language"),
    ],
)  # fmt: skip
def test_tables_that_are_no_stimuli(table, options, message):
    assert refusal(table_texts, table, "t", ENGLISH, **options) == message


def test_names_of_texts_stay_apart():
    found = framed(pd.DataFrame({"word": ["x", "y"], "a": ["a_b", "a"], "b": ["c", "b_c"]}), by=("a", "b"))
    assert [text.text_id for text in found.texts] == ["a_b/c", "a/b_c"]


@pytest.mark.parametrize(
    ("context", "words", "characters"),
    [("It rained.", ["He", "left."], "It rained. He left."), ("It rained.\n\n", ["He"], "It rained.\n\nHe"),
     ("", ["He"], "He"), (None, ["He"], "He"), ("It rained", [".", "He"], "It rained. He"),
     ("He said: ", ['"', "No"], 'He said: "No')],
)  # fmt: skip
def test_the_context_stands_before_the_text(context, words, characters):
    found = framed(pd.DataFrame({"word": words, "item": 1, "c": context}), by=("item",), context_column="c")
    assert found.texts[0].characters == characters
    assert found.texts[0].words == tuple(words)


def test_chinese_tables_are_read_without_spaces():
    frame = pd.DataFrame({"word": ["我", "用", "iPhone", "15", "。"], "item": 1, "c": "他来了。"})
    found = framed(frame, "zh", by=("item",), context_column="c")
    assert found.texts[0].characters == "他来了。我用iPhone 15。"
    sentences = framed(pd.DataFrame({"word": ["我喜欢猫。", "你呢？"], "n": [1, 2]}), "zh", segment=True)
    assert [text.words for text in sentences.texts] == [("我", "喜欢", "猫。"), ("你", "呢？")]
    assert list(sentences.frame["n"]) == [1, 1, 1, 2, 2]
    assert refusal(framed, pd.DataFrame({"word": ["我喜欢猫。", "你呢？"]}), "zh") == (
        "the frame has one word in 2 of 2 rows; name the columns that make a text with --by (or use --segment, if rows "
        "are sentences) (columns: word)"
    )


# Frames


def test_frames_of_any_types():
    frame = pd.DataFrame(
        {
            "word": pd.Categorical(["The", "dog", "left"]),
            "item": pd.array([1, 1, 2], "Int64"),
            "number": [1.0, 1.0, 2.0],  # as R writes whole numbers
            "list": ["x", "x", "x"],
        },
        index=[10, 20, 20],
    ).astype({"list": "string"})
    found = framed(frame, by=("item", "number", "list"))
    assert [(text.text_id, text.words) for text in found.texts] == [("1_1_x", ("The", "dog")), ("2_2_x", ("left",))]
    pd.testing.assert_frame_equal(found.frame, frame)
    assert framed(pd.DataFrame({"word": [1999, np.float32(2.5)], "i": 1}), by=("i",)).texts[0].words == ("1999", "2.5")


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "the word is empty; write one or remove the row, or read"), (pd.NA, "the word is empty"),
     (True, "the word is True; make its column one of text"), (["a"], "the word is ['a']; make its column one of text"),
     (pd.Timestamp("2020-05-05"), "the word is Timestamp('2020-05-05 00:00:00'); make its column one of text")],
)  # fmt: skip
def test_what_is_no_word_of_a_frame(value, message):
    frame = pd.DataFrame({"word": ["a", value], "item": 1}, index=["x", "y"], dtype=object)
    assert refusal(framed, frame, by=("item",)).startswith(f"the frame, row 'y': {message}")


def test_ids_survive_json(tmp_path):
    """A text's id is a string, also where another program reads the metadata."""
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text_id": 12345678901234567890, "text": "a"}))
    assert read_texts(path, ENGLISH).texts[0].text_id == "12345678901234567890"
