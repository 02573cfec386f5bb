"""Bodies for ten MultiPL-E problems per language, each with a wrong one: a slip that runs but fails the tests.

What a body must not close (Rust, Java) the tests close; JavaScript's bodies close their function themselves.
"""

RIGHT_AND_WRONG: dict[str, dict[str, tuple[str, str]]] = {
    "rs": {
        "HumanEval_23_strlen": ("string.len() as isize", "string.len() as isize + 1"),
        "HumanEval_85_add": (
            "lst.iter().skip(1).step_by(2).filter(|x| *x % 2 == 0).sum()",
            "lst.iter().step_by(2).filter(|x| *x % 2 == 0).sum()",
        ),
        "HumanEval_140_fix_spaces": (
            """let chars: Vec<char> = text.chars().collect();
    let (mut out, mut i) = (String::new(), 0);
    while i < chars.len() {
        let mut j = i;
        while j < chars.len() && chars[j] == ' ' { j += 1; }
        if j - i > 2 { out.push('-'); } else { for _ in i..j { out.push('_'); } }
        if j < chars.len() { out.push(chars[j]); j += 1; }
        i = j;
    }
    out""",
            "text.replace(' ', \"_\")",
        ),
        "HumanEval_63_fibfib": (
            """let (mut a, mut b, mut c) = (0, 0, 1);
    for _ in 0..n { let d = a + b + c; a = b; b = c; c = d; }
    a""",
            "n - n",
        ),
        "HumanEval_151_double_the_difference": (
            "lst.iter().filter(|x| **x > 0.0 && **x % 2.0 == 1.0).map(|x| (x * x) as isize).sum()",
            "lst.iter().filter(|x| **x % 2.0 == 1.0).map(|x| *x as isize).sum()",
        ),
        "HumanEval_41_car_race_collision": ("n * n", "n + n"),
        "HumanEval_17_parse_music": (
            """music_string.split_whitespace()
        .map(|note| match note { "o" => 4, "o|" => 2, _ => 1 }).collect()""",
            "vec![4; music_string.split_whitespace().count()]",
        ),
        "HumanEval_79_decimal_to_binary": ('format!("db{:b}db", decimal)', 'format!("{:b}", decimal)'),
        "HumanEval_14_all_prefixes": (
            "(1..=string.len()).map(|n| string[..n].to_string()).collect()",
            "(0..string.len()).map(|n| string[..n].to_string()).collect()",
        ),
        "HumanEval_53_add": ("x + y", "x - y"),
    },
    "java": {
        "HumanEval_23_strlen": ("return string.length();", "return string.length() + 1;"),
        "HumanEval_85_add": (
            """long sum = 0;
        for (int i = 1; i < lst.size(); i += 2) if (lst.get(i) % 2 == 0) sum += lst.get(i);
        return sum;""",
            "long sum = 0; for (long x : lst) sum += x; return sum;",
        ),
        "HumanEval_140_fix_spaces": (
            'return text.replaceAll(" {3,}", "-").replace(" ", "_");',
            'return text.replace(" ", "_");',
        ),
        "HumanEval_63_fibfib": (
            "return n < 2 ? 0 : n == 2 ? 1 : fibfib(n - 1) + fibfib(n - 2) + fibfib(n - 3);",
            "return n < 2 ? 0 : n == 2 ? 1 : fibfib(n - 1) + fibfib(n - 2);",
        ),
        "HumanEval_151_double_the_difference": (
            "long sum = 0; for (float x : lst) if (x > 0 && x % 2 == 1) sum += (long) (x * x); return sum;",
            "long sum = 0; for (float x : lst) sum += (long) (x * x); return sum;",
        ),
        "HumanEval_41_car_race_collision": ("return n * n;", "return 2 * n;"),
        "HumanEval_17_parse_music": (
            """ArrayList<Long> out = new ArrayList<>();
        for (String note : music_string.split(" "))
            if (!note.isEmpty()) out.add(note.equals("o") ? 4l : note.equals("o|") ? 2l : 1l);
        return out;""",
            "return new ArrayList<Long>();",
        ),
        "HumanEval_79_decimal_to_binary": (
            'return "db" + Long.toBinaryString(decimal) + "db";',
            'return "bd" + Long.toBinaryString(decimal) + "bd";',
        ),
        "HumanEval_8_sum_product": (
            """long sum = 0, product = 1;
        for (long x : numbers) { sum += x; product *= x; }
        return Pair.with(sum, product);""",
            "return Pair.with(0l, 1l);",
        ),
        "HumanEval_53_add": ("return x + y;", "return x - y;"),
    },
    "js": {
        "HumanEval_23_strlen": ("return string.length;\n}", "return string.length + 1;\n}"),
        "HumanEval_85_add": (
            "return lst.filter((x, i) => i % 2 === 1 && x % 2 === 0).reduce((a, b) => a + b, 0);\n}",
            "return lst.filter(x => x % 2 === 0).reduce((a, b) => a + b, 0);\n}",
        ),
        "HumanEval_140_fix_spaces": (
            "return text.replace(/ {3,}/g, '-').replace(/ /g, '_');\n}",
            "return text.replace(/ /g, '_');\n}",
        ),
        "HumanEval_63_fibfib": (
            "let [a, b, c] = [0, 0, 1];\n  for (let i = 0; i < n; i++) [a, b, c] = [b, c, a + b + c];\n  return a;\n}",
            "return n;\n}",
        ),
        "HumanEval_151_double_the_difference": (
            "return lst.filter(x => x > 0 && x % 2 === 1).reduce((a, x) => a + x * x, 0);\n}",
            "return lst.reduce((a, x) => a + x * x, 0);\n}",
        ),
        "HumanEval_41_car_race_collision": ("return n * n;\n}", "return n;\n}"),
        "HumanEval_17_parse_music": (
            "return music_string.split(' ').filter(x => x).map(x => ({'o': 4, 'o|': 2})[x] || 1);\n}",
            "return [];\n}",
        ),
        "HumanEval_79_decimal_to_binary": (
            "return 'db' + decimal.toString(2) + 'db';\n}",
            "return decimal.toString(2);\n}",
        ),
        "HumanEval_14_all_prefixes": (
            "return [...string].map((_, i) => string.slice(0, i + 1));\n}",
            "return [...string];\n}",
        ),
        "HumanEval_53_add": ("return x + y;\n}", "return x * y;\n}"),
    },
}
