"""MultiPL-E replies as models write them: imports, helpers and signatures of their own, a main, usage.

Every reply answers HumanEval_23_strlen correctly, so its program must pass with the real compiler.
"""

import pytest

from helpers.code_rows import Rows
from trimoe.bench.bench import Doc
from trimoe.bench.benches import multipl_e_100
from trimoe.bench.code import multipl_e
from trimoe.bench.code.languages import language_of

RUST = {
    "a use before it": """```rust
use std::collections::HashMap;
use std::fmt::{self, Display};

fn strlen(string: String) -> isize {
    let mut seen: HashMap<usize, char> = HashMap::new();
    for (i, c) in string.chars().enumerate() { seen.insert(i, c); }
    seen.len() as isize
}
```""",
    "helpers on both sides": """```rust
const STEP: isize = 1;

/// Adds one. A brace in a comment: }
fn next(n: isize) -> isize { n + STEP }

fn strlen(string: String) -> isize {
    let brace = '}';
    string.chars().fold(start(), |n, c| if c == brace { next(n) } else { next(n) })
}

fn start() -> isize { 0 }
```""",
    "a main of its own": """```rust
fn strlen(string: String) -> isize {
    string.len() as isize
}

fn main() {
    println!("{}", strlen(String::from("a { brace")));
}
```""",
    "mut in the signature": """```rust
fn strlen(mut string: String) -> isize {
    let mut n = 0;
    while let Some(_) = string.pop() { n += 1; }
    n
}
```""",
    "another parameter name": "```rust\npub fn strlen(s: String) -> isize {\n    s.len() as isize\n}\n```",
    "another type for the same parameter": "```rust\nfn strlen(string: &str) -> isize { string.len() as isize }\n```",
    "a longer usage block": """```rust
fn strlen(string: String) -> isize {
    string.len() as isize
}
```
Use it like this:
```rust
fn main() {
    // a longer block than the solution itself, so that size alone would prefer it
    println!("{} {} {}", strlen(String::from("abc")), strlen(String::from("")), strlen(String::from("x")));
}
```""",
    "tests and attributes": """```rust
#![allow(dead_code)]

#[derive(Debug)]
struct Count { n: isize }

impl Count { fn of(s: &str) -> Count { Count { n: s.len() as isize } } }

#[inline]
fn strlen(string: String) -> isize { Count::of(&string).n }

#[cfg(test)]
mod tests { use super::*; #[test] fn works() { assert_eq!(strlen(String::new()), 0); } }
```""",
    "comments after it": """```rust
fn strlen(string: String) -> isize {
    string.len() as isize
} // done
// strlen(String::from("abc")) == 3
```""",
    "a second attempt": """```rust
fn strlen(string: String) -> isize { 0 }
```
That ignores its argument. Better:
```rust
fn strlen(string: String) -> isize { string.len() as isize }
```""",
    "begins inside the fence": "fn strlen(string: String) -> isize {\n    string.len() as isize\n}\n```\nDone.",
    "tildes": "~~~rust\nfn strlen(string: String) -> isize {\n    string.len() as isize\n}\n~~~",
    "the body alone": "```rust\n    string.len() as isize\n```",
}
JAVA = {
    "an import before it": """```java
import java.util.concurrent.atomic.AtomicLong;
import java.util.*;

class Problem {
    public static long strlen(String string) {
        AtomicLong n = new AtomicLong();
        string.chars().forEach(c -> n.incrementAndGet());
        return n.get();
    }
}
```""",
    "helpers on both sides": """```java
class Problem {
    private static final int STEP = 1;
    private static long next(long n) { return n + STEP; }

    public static long strlen(String string) {
        long n = start();
        for (char c : string.toCharArray()) { if (c == '}') n = next(n); else n = next(n); }
        return n;
    }

    private static long start() { return 0; }
}
```""",
    "a public class of another name with a main": """```java
public class Solution {
    static long count(String s) { return s.length(); }
    public static long strlen(String string) {
        return Solution.count(string);
    }
    public static void main(String[] args) {
        System.out.println(strlen("a { brace"));
    }
}
```""",
    "a main in a class of its own": """```java
class Problem {
    public static long strlen(String string) {
        return string.length();
    }
}
public class Main {
    public static void main(String[] args) { System.out.println(Problem.strlen("abc")); }
}
```""",
    "a helper class and a record": """```java
class Counter { long n; void add() { n++; } }
record Pair(long a, long b) {}
class Problem {
    public static long strlen(String string) {
        Counter counter = new Counter();
        for (int i = 0; i < string.length(); i++) counter.add();
        return new Pair(counter.n, 0).a();
    }
}
```""",
    "the method alone": "```java\npublic static long strlen(String string) {\n    return string.length();\n}\n```",
    "another parameter name, not static": "```java\npublic long strlen(final String s) {\n  return s.length();\n}\n```",
    "another type": "```java\npublic static int strlen(String string) {\n    return string.length();\n}\n```",
    "a longer usage block": """```java
public static long strlen(String string) {
    return string.length();
}
```
```java
public class Main {
    public static void main(String[] args) {
        // a longer block than the solution itself, so that size alone would prefer it
        System.out.println(Problem.strlen("abc") + Problem.strlen("") + Problem.strlen("a longer one"));
    }
}
```""",
    "begins inside the fence": "public static long strlen(String string) {\n    return string.length();\n}\n```\nDone.",
    "the body alone": "```java\n        return string.length();\n```",
}
JS = {
    "an arrow function": "```javascript\nconst strlen = (string) => {\n  return string.length;\n};\n```",
    "an arrow function without braces": "```javascript\nconst strlen = string => string.length;\n```",
    "imports and helpers": """```javascript
const { inspect } = require('node:util');
const assert = require('assert');
const step = 1

// Adds one: }
const next = (n) => n + step

function strlen(string) {
  let n = start();
  for (const c of string.replace(/}/g, '{')) n = next(n);
  return n;
}

function start() { return inspect(0).length - 1; }
```""",
    "usage that would end the program": """```javascript
function strlen(string) {
  return string.length;
}

console.log(strlen("abc"));
assert.equal(strlen("abc"), 4);
process.exit(0);
```""",
    "a main behind a guard": """```javascript
function strlen(string) { return string.length; }

function main() { process.exit(1); }

if (require.main === module) {
  main();
} else {
  process.exit(2);
}
module.exports = { strlen };
```""",
    "modules of today": """```javascript
import { inspect as shown } from 'node:util';
import * as path from "node:path";
import fs from 'node:fs';
export function strlen(string) { return path.join(shown(string.length)) * 1 + 0 * fs.constants.F_OK; }
```""",
    "a main that is called at once": """```javascript
function strlen(string) { return string.length; }

(async () => { process.exit(3); })();
```""",
    "declared, then assigned": """```javascript
let strlen;
strlen = function (string) { return string.length; };
```""",
    "braces in a regular expression": """```javascript
const re = /[{}"'`]/g
const strlen = (string) => {
  return string.replace(re, 'x').length
}
console.log(strlen('}'))
```""",
    "an export": "```javascript\nexport default function strlen(string) {\n  return string.length;\n}\n```",
    "a name that the tests take": """```javascript
const test = "abc";
const strlen = function (string) { return string.length; };
```""",
    "a longer usage block": """```javascript
const strlen = (string) => string.length;
```
```javascript
// a longer block than the solution itself, so that size alone would prefer it
console.log(strlen("abc"), strlen(""), strlen("a longer one"), strlen("and one more"));
```""",
    "begins inside the fence": "function strlen(string){\n  return string.length;\n}\n```\nDone.",
    "the body alone": "```javascript\n  return string.length;\n}\n```",
}
REPLIES = {"rs": RUST, "java": JAVA, "js": JS}


@pytest.mark.parametrize("key", sorted(REPLIES))
def test_right_chat_replies_pass(key: str, rows: Rows) -> None:
    language = language_of(key)
    if language.toolchain() is None:
        pytest.skip(f"not run: needs {language.needs} ({language.install})")
    (row,) = (
        row for row in rows(f"multipl_e/humaneval-{key}-reworded.json.gz") if row["name"] == "HumanEval_23_strlen"
    )
    doc = Doc("HumanEval_23_strlen", "", "", row)
    programs = {name: multipl_e_100.program(reply, doc) for name, reply in REPLIES[key].items()}
    assert [name for name, program in programs.items() if program is None] == []
    verdicts = multipl_e.score([(program or "", doc) for program in programs.values()])
    assert {n: v.detail for n, v in zip(programs, verdicts, strict=True) if not v.correct} == {}


def test_own_imports_of_the_prompt_are_not_doubled(rows: Rows) -> None:
    (row,) = (r for r in rows("multipl_e/humaneval-rs-reworded.json.gz") if r["name"] == "HumanEval_111_histogram")
    doc = Doc("d", "", "", row)
    function = "fn histogram(test: String) -> HashMap<String, isize> { HashMap::new() }"
    for own, count in (("use std::collections::{BTreeMap, HashMap};\n", 1), ("", 1), ("use std::fmt;\n", 2)):
        program = multipl_e_100.program(f"```rust\n{own}{function}\n```", doc)
        assert program is not None
        assert program.count("use std::") == count


def test_source_that_cannot_be_taken_apart_is_a_body_after_the_prompt(rows: Rows) -> None:
    (row,) = (r for r in rows("multipl_e/humaneval-rs-reworded.json.gz") if r["name"] == "HumanEval_23_strlen")
    doc = Doc("d", "", "", row)
    nested = "impl S {\n    fn strlen(string: String) -> isize {\n    7\n}\n}"
    assert multipl_e_100.program(f"```rust\n{nested}\n```", doc) == f"{row['prompt']}    7\n{row['tests']}"
    for odd in ("fn strlen(", 'fn strlen(string: String) -> isize { "', "}}}} fn strlen() {", "/* fn strlen() {}"):
        assert (multipl_e_100.program(f"```rust\n{odd}\n```", doc) or row["tests"]).endswith(row["tests"])
