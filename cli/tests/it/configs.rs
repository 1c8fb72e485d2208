//! Every config in `configs/` loads, and names only keys that exist.

use std::path::Path;
use trainer::config::{Config, Serving};

#[test]
fn every_config_loads_and_its_resolved_form_loads_to_the_same() {
    let folder = super::workspace().join("configs");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        resolved(&path);
        count += 1;
    }
    assert!(count >= 2);
}

/// Every key of a config, defaults included: of a run's, or of a daemon's. It must load to the same.
pub(crate) fn resolved(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let fail = |error: trainer::Error| -> ! { panic!("{}: {error}", path.display()) };
    if text.lines().any(|line| line == "[serve]") {
        let config = Serving::load(path, &[]).unwrap_or_else(|error| fail(error));
        let resolved = config.resolved().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("resolved.toml");
        std::fs::write(&copy, &resolved).unwrap();
        assert_eq!(Serving::load(&copy, &[]).unwrap(), config, "{}", path.display());
        return resolved;
    }
    let config = Config::load(path, &[]).unwrap_or_else(|error| fail(error));
    let resolved = config.resolved().unwrap();
    assert_eq!(Config::parse(&resolved, "resolved", &[]).unwrap(), config, "{}", path.display());
    resolved
}
