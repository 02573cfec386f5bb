"""Degenerate replies: what a damaged model writes when it loops, and what makes careless patterns slow."""

# Pieces that are repeated, each to the wanted length.
PIECES = {
    "newlines": "\n",
    "spaces": " ",
    "tabs": "\t",
    "spaces and newlines": " \n",
    "letters": "a",
    "capitals": "A",
    "digits": "1",
    "zeros": "0",
    "dots": ".",
    "commas": ",",
    "dashes": "-",
    "underscores": "_",
    "stars": "*",
    "dollars": "$",
    "equals": "=",
    "colons": ":",
    "slashes": "/",
    "backslashes": "\\",
    "quotes": '"',
    "apostrophes": "'",
    "backticks": "`",
    "tildes": "~",
    "parentheses": "(",
    "brackets": "[",
    "braces": "{",
    "closing braces": "}",
    "angles": "<",
    "pairs of braces": "{}",
    "groups of digits": "1,",
    "spaced digits": "1 ",
    "spaced capitals": "A ",
    "boxes": "\\boxed{",
    "boxes with spaces": "\\boxed {",
    "text commands": "\\text{",
    "fences": "```\n",
    "tagged fences": "```python\n",
    "tilde fences": "~~~\n",
    "statements": "answer is ",
    "boxed statements": "answer is \\boxed{",
    "equations": "= 5 ",
    "options": "(A) ",
    "answers": "Answer: ",
    "code": "x = 1\n",
    "functions": "def f(",
    "decorators": "@d\n",
    "imports": "import x\n",
    "comments": "/*",
    "raw strings": 'r#"',
    "characters": "'\\",
    "rust": "fn f(",
    "java": "long f(",
    "attributes": "#[",
    "scores": "#### ",
    "tags": "<think>",
}
# A beginning, a run, and an end that does not fit.
RUNS = {
    "a statement before newlines": ("The answer is", "\n", "A"),
    "a statement before spaces": ("Final answer:", " ", "x"),
    "a box of spaces": ("\\boxed{", " ", "x"),
    "a number that goes on": ("= 1", "1", ".5x"),
    "a number before dots": ("=5", ".", ";"),
    "a fence before newlines": ("```python", "\n", "x"),
    "a name before spaces": ("long f", " ", "x"),
    "an open comment": ("```\n/*", "*", "x"),
    "an open block of code": ("```python\n", "(", "\n```"),
    "a block of code": ("```python\n", "x = [1, 2]\n", "this is prose\n```"),
}


def shapes(length: int) -> dict[str, str]:
    """Every degenerate reply by name, each of about `length` characters."""
    repeated = {name: piece * (length // len(piece)) for name, piece in PIECES.items()}
    closed = {
        f"{name}, in a block": f"```python\n{text}\n```" for name, text in repeated.items() if "\n```" not in text
    }
    runs = {name: begin + run * (length // len(run)) + end for name, (begin, run, end) in RUNS.items()}
    return {**repeated, **closed, **runs}
