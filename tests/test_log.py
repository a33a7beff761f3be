"""The progress bar, the record of a run, and tables."""

import json

import pytest

from minialpaca import log
from minialpaca.errors import UserError
from minialpaca.log import PlainBar, RunLog, kept, progress, table, visible


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(log.time, "monotonic", lambda: self.now)


def test_a_plain_bar_speaks_every_fifteen_seconds_and_at_the_end(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    with PlainBar(960, "training", "steps") as bar:
        for _ in range(960):
            clock.now += 0.125
            bar.set_postfix_str("loss 2.0", refresh=False)
            bar.update()
    assert capsys.readouterr().out.splitlines() == [
        f"training {120 * i}/960 steps, {i // 4}:{i % 4 * 15:02d} spent, {(8 - i) // 4}:{-i % 4 * 15:02d} left, "
        "loss 2.0"
        for i in range(1, 9)]


def test_a_continued_bar_counts_the_time_that_is_left_from_its_own_steps(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    bar = PlainBar(100, "training", "steps", done=60)
    clock.now += 20
    bar.update(20)
    clock.now += 30  # half of the 40 steps took 20 s; asked again after 50 s with 10 left
    bar.update(10)
    assert capsys.readouterr().out.splitlines() == [
        "training 80/100 steps, 0:20 spent, 0:20 left", "training 90/100 steps, 0:50 spent, 0:16 left"]


def test_a_finished_bar_does_not_repeat_itself(monkeypatch, capsys):
    Clock(monkeypatch)
    bar = PlainBar(2, "x", "B")
    for n in (2, 0, 0):
        bar.update(n)
    assert capsys.readouterr().out == "x 2/2 B, 0:00 spent, 0:00 left\n"


def test_without_a_terminal_progress_is_plain():
    assert type(progress("x", 3, "B")) is PlainBar


# ── metrics.jsonl ────────────────────────────────────────────────────────────────────────────────


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_each_record_is_a_line_that_is_on_disk_at_once(tmp_path):
    run_log = RunLog(tmp_path, 0)
    records = [{"step": 0, "val_loss": 2.5}, {"step": 1, "loss": 1 / 3, "lr": 1e-3}]
    for i, record in enumerate(records, 1):
        run_log.metrics(record)
        assert lines_of(tmp_path) == records[:i]
    run_log.close()
    assert any((tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize("tail", ["", '{"step": 4, "lo', '{"step": 4, "loss": 1}', '{"step": 2, "loss": 1}'])
def test_a_continued_log_forgets_what_came_after_its_checkpoint(tmp_path, tail):
    """Also a line that was cut off, with no newline, whatever it says."""
    kept = "".join(json.dumps({"step": s, "loss": 0.1 + s}) + "\n" for s in range(3))
    path = tmp_path / "metrics.jsonl"
    path.write_text(kept + '{"step": 3, "loss": 9}\n' + tail, encoding="utf-8")
    run_log = RunLog(tmp_path, 2)
    assert path.read_text(encoding="utf-8") == kept
    run_log.metrics({"step": 3, "loss": 5.0})
    run_log.close()
    assert [r["step"] for r in lines_of(tmp_path)] == [0, 1, 2, 3] and lines_of(tmp_path)[-1]["loss"] == 5.0
    assert not (tmp_path / "metrics.jsonl.part").exists()


@pytest.mark.parametrize("broken", [b'{"a\n{"step"', b'{"a"}\n', b'{"loss": 1}\n', b"7\n", b'{"step": null}\n', b"\n", b"\xff\n"])
def test_a_broken_line_is_named_and_the_file_left_alone(tmp_path, broken):
    path, content = tmp_path / "metrics.jsonl", b'{"step": 0}\n{"step": 1, "loss": 2}\n' + broken
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 3: is no record of a step; mend it or remove the line"):
        RunLog(tmp_path, 2)
    assert path.read_bytes() == content


@pytest.mark.parametrize(("there", "lost"), [((0, 1, 2, 3), None), ((0, 3), "2 of the 4"), ((0, 2, 3, 4, 5), "1 of the 4"), ((), "4 of the 4")])
def test_lines_that_somebody_took_away_are_counted(tmp_path, there, lost, capsys):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"step": s}) + "\n" for s in there), encoding="utf-8")
    RunLog(tmp_path, 3).close()
    said = capsys.readouterr().out
    assert f"has lost {lost} records" in said if lost else said == ""


def test_a_step_that_nobody_reached_is_counted_at_once(tmp_path):
    (tmp_path / "m").write_bytes(b'{"step": 0}\n{"step": 1}\n{"step": 1}\n')
    lines, note = kept(tmp_path / "m", 1 << 52)
    assert len(lines) == 3 and f"has lost {(1 << 52) - 1:,} of" in note


def test_records_of_a_run_without_a_checkpoint_are_spoken_of(tmp_path):
    (tmp_path / "m").write_bytes(b'{"step": 0}\n{"step": 1}\n')
    lines, note = kept(tmp_path / "m", 0)
    assert lines == [] and "its 2 records are of a run that has no checkpoint and begins anew" in note
    (tmp_path / "m").write_bytes(b'{"step": 0}\n')
    assert kept(tmp_path / "m", 0) == kept(tmp_path / "none", 0) == ([], "")


def test_a_run_from_the_beginning_forgets_everything(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "val_loss": 3}\n{"step": 1}\n', encoding="utf-8")
    RunLog(tmp_path, 0).close()
    assert lines_of(tmp_path) == []


@pytest.mark.parametrize("line", [b"{oops", b"\xff", b"[1]", b"{}", b'{"step": "x"}', b'{"step": null}', b"[" * 100_000])
def test_a_damaged_line_is_named_where_a_run_goes_on(tmp_path, line):
    content = b'{"step": 0}\n' + line + b'\n{"step": 2}\n'
    (tmp_path / "metrics.jsonl").write_bytes(content)
    with pytest.raises(UserError, match="metrics.jsonl, line 2: is no record of a step"):
        RunLog(tmp_path, 2)
    assert (tmp_path / "metrics.jsonl").read_bytes() == content
    RunLog(tmp_path, 0).close()  # from the beginning nothing is kept, nor looked at


def test_a_full_disk_is_told_with_the_file(tmp_path):
    run_log = RunLog(tmp_path, 0)
    run_log.file.close()
    run_log.file = open("/dev/full", "w")
    with pytest.raises(UserError, match="metrics.jsonl: cannot be written: no space left on device"):
        run_log.metrics({"step": 0})
    run_log.close()  # without a second complaint


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="file: the log cannot be written: not a directory"):
        RunLog(tmp_path / "file", 0)


# ── texts and tables ─────────────────────────────────────────────────────────────────────────────


def test_control_characters_are_spelled_and_nothing_else_is_changed():
    assert visible("a\x00\x1b[31m\r\x7f\x85\x9f") == r"a\x00\x1b[31m\x0d\x7f\x85\x9f"
    assert visible("a\tb\n\n Café 漢字 😀 \xa0 \\x00 �") == "a\tb\n\n Café 漢字 😀 \xa0 \\x00 �"
    assert [c for c in map(chr, range(0x300)) if visible(c) != c] == [
        chr(c) for c in (*range(9), *range(11, 32), *range(127, 160))]


def test_a_table_puts_texts_left_and_numbers_right():
    rows = [("a", 1, 0.5), ("long name", 12_345, 100.0)]
    assert table(rows, ("kind", "asked", "per cent")).splitlines() == [
        "kind        asked  per cent",
        "a               1     0.500",
        "long name  12,345   100.000",
    ]
    assert table([], ("kind", "asked")) == "kind  asked"
