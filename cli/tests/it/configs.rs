//! Every config in `configs/` loads, and names only keys that exist.

use trainer::config::Config;

#[test]
fn every_config_loads_and_its_resolved_form_loads_to_the_same() {
    let folder = super::workspace().join("configs");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let config = Config::load(&path, &[]).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let resolved = config.resolved().unwrap();
        assert_eq!(Config::parse(&resolved, "resolved", &[]).unwrap(), config, "{}", path.display());
        count += 1;
    }
    assert!(count >= 2);
}
