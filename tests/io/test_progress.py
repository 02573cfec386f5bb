"""Progress: counts, rate and time left, and lines of text where no terminal shows a bar."""

import re
from time import monotonic, sleep

import pytest

from trimoe.io.progress import Pace, clock_time, lines


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def paced(*reports: tuple[float, int, int]) -> str:
    """The counts after these (time in seconds, done, total)."""
    clock = Clock()
    pace = Pace(clock)
    for clock.now, done, total in reports:
        pace.update(done, total, "")
    return pace.counts()


@pytest.mark.parametrize(
    ("reports", "counts"),
    [
        ([(0, 0, 200)], "0 of 200 (0 %)"),
        ([(0, 0, 200), (10, 20, 200)], "20 of 200 (10 %), 2/s, 1:30 left"),
        ([(0, 0, 0), (10, 20, 0)], "20, 2/s"),
        ([(0, 0, 0)], ""),
        ([(0, 0, 10), (60, 2, 10)], "2 of 10 (20 %), 30 s each, 4:00 left"),
        ([(0, 0, 4), (9, 4, 4)], "4 of 4 (100 %), 0.44/s"),
        # a resumed command: 900 rows were there before
        ([(0, 900, 1000), (10, 910, 1000)], "910 of 1,000 (91 %), 1/s, 1:30 left"),
        # a second phase, of another unit
        (
            [(0, 0, 8), (50, 8, 8), (60, 0, 5_000_000_000), (70, 10**9, 5 * 10**9)],
            "1 G of 5 G (20 %), 100 M/s, 0:40 left",
        ),
        # a second phase with the same total
        ([(0, 0, 8), (50, 8, 8), (60, 0, 8), (62, 4, 8)], "4 of 8 (50 %), 2/s, 0:02 left"),
    ],
)
def test_counts(reports: list[tuple[float, int, int]], counts: str) -> None:
    assert paced(*reports) == counts


def test_clock_time() -> None:
    assert [clock_time(s) for s in (0, 59.6, 61, 3600)] == ["0:00", "1:00", "1:01", "1:00:00"]


def wait_for(stream: pytest.CaptureFixture[str], text: str) -> str:
    """Standard error, as soon as it holds the text."""
    read, begun = "", monotonic()
    while text not in read:
        assert monotonic() - begun < 30, read
        sleep(0.02)
        read += stream.readouterr().err
    return read


def test_lines_of_a_redirected_command(capsys: pytest.CaptureFixture[str]) -> None:
    with lines("eval", every=3600, first=0.01) as report:
        report(1, 100, "tiny-code")
        seen = wait_for(capsys, "1 of 100 (1 %), tiny-code")
        report(3, 100, "tiny-code")  # less than 5 % more
        report(50, 100, "tiny-code")
        seen += wait_for(capsys, "50 of 100 (50 %)")
    assert all(re.fullmatch(r"eval: .*\d:\d\d so far", line) for line in seen.splitlines())


def test_lines_go_on_while_nothing_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    with lines("certify", every=0.05, first=0.05):
        wait_for(capsys, "certify: 0:00 so far\ncertify: 0:00 so far\n")


def test_a_step_without_a_note_ends_without_a_space() -> None:
    pace = Pace()
    pace.update(0, 0, "eval ")
    assert pace.text == "eval"
