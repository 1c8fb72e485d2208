//! Every SQL block of `docs/replay.md` answers on a real store.

use crate::replay::{OTHER_REWARD, desk_with_run};
use crate::support::config;

/// A block whose first line is this may answer without rows.
const MAY_BE_EMPTY: &str = "-- may have no rows";

#[test]
fn every_query_of_the_page_answers() {
    let page = std::fs::read_to_string(crate::workspace().join("docs/replay.md")).unwrap();
    let blocks: Vec<&str> =
        page.split("```sql\n").skip(1).map(|rest| rest.split("```").next().unwrap().trim()).collect();
    assert!(blocks.len() >= 20, "only {} queries", blocks.len());
    let desk = desk_with_run(4);
    desk.ok(&["train", &config("tiny.toml"), "--set", "steps=2", "--set", "seed=1", "--out", "other"]);
    desk.write("brief.toml", OTHER_REWARD);
    desk.ok(&["replay", "rescore", "--reward", "brief.toml"]);
    desk.write("old.jsonl", "{\"prompt\": \"1+1=\", \"completion\": \"2\", \"reward\": 1}\n");
    desk.ok(&["replay", "import", "old.jsonl", "--config", &config("tiny.toml")]);
    for block in blocks {
        let header = desk.ok(&["replay", "query", "--format", "csv", "--", block]);
        assert!(!header.lines().next().unwrap_or_default().is_empty(), "no columns:\n{block}");
        let rows = desk.query(block);
        assert!(!rows.is_empty() || block.starts_with(MAY_BE_EMPTY), "no rows:\n{block}");
    }
}
