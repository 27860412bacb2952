//! `nft -j list ruleset` (libnftables-json(5)), as far as it matters to pods.

use causeway::exact_rule;
use serde_json::Value;

/// A rule that masquerades.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) struct Masquerading {
    /// Family, table and chain.
    pub(in super::super) place: String,
    pub(in super::super) handle: u64,
}

/// Rules without a condition but negative ones, in chains at the postrouting hook, that translate the source. `is_known`
/// says which tables somebody else has judged.
pub(in super::super) fn masquerading(ruleset: &Value, is_known: &dyn Fn(&str) -> bool) -> Vec<Masquerading> {
    let mut found = Vec::new();
    for chain in base_chains(ruleset, "postrouting", is_known) {
        for rule in rules_of(ruleset, chain) {
            let statements = rule["expr"].as_array().map_or(&[][..], Vec::as_slice);
            let translates = statements
                .iter()
                .any(|statement| statement.get("masquerade").is_some() || statement.get("snat").is_some());
            if translates && !statements.iter().any(is_condition) {
                found.push(Masquerading {
                    place: place(chain),
                    handle: rule["handle"].as_u64().unwrap_or_default(),
                });
            }
        }
    }
    found
}

/// Whether there is a table, of which `is_it` is told family and name.
pub(in super::super) fn has_table(ruleset: &Value, is_it: impl Fn(&str, &str) -> bool) -> bool {
    let text = |part: &Value| part.as_str().unwrap_or_default().to_owned();
    objects(ruleset, "table").any(|table| is_it(&text(&table["family"]), &text(&table["name"])))
}

/// Chains at the forward hook whose policy is drop and that accept nothing, nor ask another chain.
pub(in super::super) fn forbidding(ruleset: &Value, is_known: &dyn Fn(&str) -> bool) -> Vec<String> {
    let decides = |rule: &&Value| {
        let statements = rule["expr"].as_array().into_iter().flatten();
        let mut names = statements
            .filter_map(Value::as_object)
            .flat_map(|statement| statement.keys());
        names.any(|name| matches!(name.as_str(), "accept" | "jump" | "goto" | "vmap"))
    };
    base_chains(ruleset, "forward", is_known)
        .into_iter()
        .filter(|chain| chain["policy"] == "drop")
        .filter(|chain| rules_of(ruleset, chain).find(decides).is_none())
        .map(place)
        .collect()
}

fn base_chains<'a>(ruleset: &'a Value, hook: &str, is_known: &dyn Fn(&str) -> bool) -> Vec<&'a Value> {
    objects(ruleset, "chain")
        .filter(|chain| chain["hook"] == hook)
        .filter(|chain| matches!(chain["family"].as_str(), Some("ip" | "inet")))
        .filter(|chain| {
            let table = chain["table"].as_str().unwrap_or_default();
            let family = chain["family"].as_str().unwrap_or_default();
            !(exact_rule::is_ours(family, table, None) || family == "ip" && is_known(table))
        })
        .collect()
}

fn rules_of<'a>(ruleset: &'a Value, chain: &'a Value) -> impl Iterator<Item = &'a Value> {
    objects(ruleset, "rule").filter(move |rule| {
        rule["family"] == chain["family"] && rule["table"] == chain["table"] && rule["chain"] == chain["name"]
    })
}

fn objects<'a>(ruleset: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    let all = ruleset["nftables"].as_array().into_iter().flatten();
    all.filter_map(move |object| object.get(kind))
}

/// A match that only certain packets pass.
fn is_condition(statement: &Value) -> bool {
    statement
        .get("match")
        .is_some_and(|condition| condition["op"] != "!=")
}

fn place(chain: &Value) -> String {
    let part = |name: &str| chain[name].as_str().unwrap_or_default();
    format!("{} {} {}", part("family"), part("table"), part("name"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ruleset(hook: &str, policy: &str, table: &str, statements: &Value) -> Value {
        json!({ "nftables": [
            { "chain": { "family": "ip", "table": table, "name": "c", "hook": hook, "policy": policy } },
            { "rule": { "family": "ip", "table": table, "chain": "c", "handle": 7, "expr": statements } },
        ] })
    }

    #[test]
    fn an_unconditional_masquerade_is_found_and_a_marked_one_is_not() {
        let is_known = |table: &str| table == "nat";
        let found = |table: &str, statements: Value| {
            masquerading(&ruleset("postrouting", "accept", table, &statements), &is_known).len()
        };
        assert_eq!(found("mine", json!([{ "masquerade": null }])), 1);
        let local = json!({ "match": { "op": "!=", "left": {}, "right": "10.0.0.0/8" } });
        assert_eq!(found("mine", json!([local, { "masquerade": null }])), 1);
        let marked = json!({ "match": { "op": "==", "left": { "meta": { "key": "mark" } }, "right": 1 } });
        assert_eq!(found("mine", json!([marked, { "masquerade": null }])), 0);
        assert_eq!(found("nat", json!([{ "masquerade": null }])), 0);
    }

    #[test]
    fn a_policy_of_drop_counts_unless_something_may_accept() {
        let count = |policy: &str, statements: Value| {
            forbidding(&ruleset("forward", policy, "fw", &statements), &|_| false).len()
        };
        assert_eq!(count("drop", json!([{ "counter": {} }])), 1);
        assert_eq!(count("drop", json!([{ "accept": null }])), 0);
        assert_eq!(count("drop", json!([{ "jump": { "target": "x" } }])), 0);
        assert_eq!(count("accept", json!([{ "counter": {} }])), 0);
    }
}
