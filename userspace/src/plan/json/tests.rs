//! Texts that serde writes and reads as well, and those of people.

use proptest::prelude::*;

use super::*;

fn plain(node: &Node) -> serde_json::Value {
    match &node.value {
        Value::Null => serde_json::Value::Null,
        Value::Bool(value) => (*value).into(),
        Value::Number(text) => serde_json::from_str(text).unwrap(),
        Value::String(text) => text.as_str().into(),
        Value::List(nodes) => nodes.iter().map(plain).collect(),
        Value::Object(members) => members
            .iter()
            .map(|(key, node)| (key.clone(), plain(node)))
            .collect(),
    }
}

fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        ".*".prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Into::into),
            prop::collection::btree_map("[a-z]{1,4}", inner, 0..5)
                .prop_map(|map| map.into_iter().collect::<serde_json::Value>()),
        ]
    })
}

proptest! {
    #[test]
    fn what_serde_writes_is_read_as_it_was(value in any_json(), pretty: bool) {
        let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
        let Parsed { root, duplicates } = parse(text.as_bytes()).unwrap();
        prop_assert_eq!(plain(&root), value);
        prop_assert!(duplicates.is_empty());
    }

    #[test]
    fn no_text_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "[-\\[\\]{}\",:a-z0-9.…\\\\ \n>]{0,60}") {
        parse(&bytes).ok();
        // What it takes without remarks, serde takes too.
        if let Ok(parsed) = parse(text.as_bytes()) && !text.contains("-->") && !text.contains('…') {
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), plain(&parsed.root));
        }
    }
}

#[test]
fn places_are_lines_columns_and_fields() {
    let text = "{\n  \"ä\": {\"b\": [1,\n\t2]}}";
    let root = parse(text.as_bytes()).unwrap().root;
    let Value::List(list) = &root.get("Ä").or(root.get("ä")).unwrap().get("B").unwrap().value else {
        panic!("{root:?}");
    };
    let places: Vec<_> = list
        .iter()
        .map(|node| (node.at.line, node.at.column, node.at.field.as_str()))
        .collect();
    assert_eq!(places, [(2, 15, "ä.b[0]"), (3, 2, "ä.b[1]")]);
}

#[test]
fn remarks_end_with_their_line_and_are_text_inside_of_strings() {
    let text = "{ --> the whole\n\"a\": \"x --> y\", --> with a \" and a }\n\"b\": [1 --> one\n, 2], \"c\": {…} --> end\n} --> no line behind";
    let root = parse(text.as_bytes()).unwrap().root;
    assert_eq!(
        plain(&root),
        serde_json::json!({ "a": "x --> y", "b": [1, 2], "c": {} })
    );
}

#[test]
fn halves_of_a_pair_stand_for_nothing() {
    for (text, expected) in [
        ("\\ud83d\\ude00", "\u{1f600}"),
        ("\\ud83d", "\u{fffd}"),
        ("\\ud83d\\u0041", "\u{fffd}"),
        ("\\ud83d\\uffff", "\u{fffd}"),
        ("\\ude00x", "\u{fffd}x"),
        ("\\u00e4\\n", "\u{e4}\n"),
    ] {
        let root = parse(format!("\"{text}\"").as_bytes()).unwrap().root;
        assert_eq!(root.value, Value::String(expected.to_owned()), "{text}");
    }
}

#[test]
fn keys_that_differ_in_case_are_one_key_twice() {
    let parsed = parse(b"{\"a\": {\"count\": 1,\n \"Count\": 2}}").unwrap();
    assert_eq!(
        parsed.duplicates,
        [Place {
            line: 2,
            column: 2,
            field: "a.Count".to_owned()
        }]
    );
    assert_eq!(
        parsed.root.get("a").unwrap().get("count").unwrap().value,
        Value::Number("2".to_owned())
    );
}

#[test]
fn each_broken_text_gives_one_error_with_its_place() {
    let deep = "[".repeat(100_000);
    for (text, expected) in [
        ("", "line 1, column 1: is empty"),
        ("  --> nothing\n", "line 2, column 1: is empty"),
        ("{\"a\": 1,}", "line 1, column 9: expected a key in quotes"),
        ("{\"a\": 1\n\"b\": 2}", "line 2, column 1: expected a comma"),
        (
            "{\"a\" 1}",
            "line 1, column 6: expected a colon behind the key \"a\"",
        ),
        ("{\"a\": vlabs}", "line 1, column 7: a: vlabs is no value"),
        ("{\"a\": \"x\n\"}", "line 1, column 7: this string is not closed"),
        ("{\"a\": \"\\x\"}", "line 1, column 10: this escape"),
        ("{\"a\": 01}", "line 1, column 7: 01 is no number"),
        ("{\"a\": -}", "line 1, column 7: - is no number"),
        ("{\"a\": 1", "line 1, column 8: expected a comma"),
        ("{} {}", "line 1, column 4: the document has ended"),
        ("[1, 2", "expected a comma or a closing bracket"),
        (&deep, "is nested deeper than 64 levels"),
    ] {
        let fault = parse(text.as_bytes()).unwrap_err().to_string();
        assert!(fault.contains(expected), "{text:.40}: {fault}");
    }
    assert_eq!(
        parse(b"{\n\"a\": \"\xff\"}").unwrap_err().to_string(),
        "line 2, column 7: is not UTF-8 from here on"
    );
    let large = vec![b' '; LARGEST + 1];
    assert_eq!(
        parse(&large).unwrap_err().to_string(),
        "line 1, column 1: is larger than 1 MiB: is this a cluster definition?"
    );
}
