"""Text made fit to be shown."""

from hypothesis import given
from hypothesis import strategies as st

from mmseg_cli.text import printable, shortened


@given(st.text(), st.integers(1, 40))
def test_a_shortened_text_fits_on_one_line_and_keeps_both_ends(text, longest):
    short = shortened(text, longest)
    assert len(short) <= longest
    assert short.isprintable()
    if text.isprintable() and len(text) <= longest:
        assert short == text
    elif len(text) > longest > 2:
        assert short[0] == printable(text[0])
        assert short[-1] == printable(text[-1])
