"""The words and names that the tasks of several domains use."""

WORDS = """
    apple arrow badge beach bench bird bowl bread cabin candle chair cloud coat corn crown desk door drum
    eagle earth fence field flag flute fork forest garden ghost glass grape hammer harbor hat honey horse
    island jacket jar kettle kite ladder lake lamp leaf lemon map market mirror moon mouse nest night oak
    ocean olive paint paper pearl piano pond queen rabbit rain ribbon river road rope sail salt school shadow
    silk snow spoon stone storm sugar table tent tiger tower train tree valley violin wagon water whale wheel
    window winter wolf wood yard
""".split()  # noqa: SIM905 93 words are easier to read without quotes
NAMES = ["Ana", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Ida", "Jon", "Kim", "Leo", "Mia"]
