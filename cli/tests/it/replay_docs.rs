//! Every SQL block of `docs/replay.md` answers on a real store.

use crate::replay::{OTHER_REWARD, sandbox_with_run};
use crate::support::config;

/// A block whose first line is this may answer without rows.
const MAY_BE_EMPTY: &str = "-- may have no rows";

#[test]
fn every_query_of_the_page_answers() {
    let page = std::fs::read_to_string(crate::workspace().join("docs/replay.md")).unwrap();
    let blocks: Vec<&str> =
        page.split("```sql\n").skip(1).map(|rest| rest.split("```").next().unwrap().trim()).collect();
    assert!(blocks.len() >= 20, "only {} queries", blocks.len());
    let sandbox = sandbox_with_run(4);
    sandbox.ok(&["train", &config("tiny.toml"), "--set", "steps=2", "--set", "seed=1", "--out", "other"]);
    sandbox.write("brief.toml", OTHER_REWARD);
    sandbox.ok(&["replay", "rescore", "--reward", "brief.toml"]);
    sandbox.write("old.jsonl", "{\"prompt\": \"1+1=\", \"completion\": \"2\", \"reward\": 1}\n");
    sandbox.ok(&["replay", "import", "old.jsonl", "--config", &config("tiny.toml")]);
    for block in blocks {
        let header = sandbox.ok(&["replay", "query", "--format", "csv", "--", block]);
        assert!(!header.lines().next().unwrap_or_default().is_empty(), "no columns:\n{block}");
        let rows = sandbox.query(block);
        assert!(!rows.is_empty() || block.starts_with(MAY_BE_EMPTY), "no rows:\n{block}");
    }
}
