//! Lets the tests find libtorch and, for data-parallel training, compiles what tch does not bind of it.

#[path = "../model/build.rs"]
mod libtorch;

fn main() {
    libtorch::main();
    #[cfg(feature = "distributed")]
    if let Ok(folder) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        let headers = std::path::Path::new(&folder).with_file_name("include");
        cc::Build::new()
            .cpp(true)
            .std("c++20")
            // The headers are torch's, and so are their warnings.
            .warnings(false)
            .include("cpp")
            .include(&headers)
            .include(headers.join("torch/csrc/api/include"))
            .define("USE_DISTRIBUTED", None)
            .define("USE_C10D_GLOO", None)
            .file("cpp/team.cpp")
            .compile("proxrl_team");
        println!("cargo::rerun-if-changed=cpp");
    }
}
