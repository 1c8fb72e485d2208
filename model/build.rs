//! Lets test binaries and programs find libtorch without `LD_LIBRARY_PATH`.
//!
//! torch-sys tells its direct dependents where it linked libtorch; that folder becomes an rpath. `$ORIGIN/../lib/proxrl`
//! comes first, so that an installed program with its libraries beside it can be moved.

pub(crate) fn main() {
    println!("cargo::rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib/proxrl");
    // With tch's feature `doc-only` (lints and docs without libtorch) there is nothing to find.
    if let Ok(folder) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{folder}");
    }
    println!("cargo::rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
}
