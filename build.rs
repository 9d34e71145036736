//! Finds httpd through apxs, generates the bindings of what the adapter uses, compiles the C shim.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn apxs() -> PathBuf {
    println!("cargo:rerun-if-env-changed=APXS");
    println!("cargo:rerun-if-env-changed=PATH");
    if let Some(p) = env::var_os("APXS") {
        return p.into();
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/bin".into()]).collect::<Vec<_>>();
    for name in ["apxs2", "apxs"] {
        if let Some(p) = dirs.iter().map(|d| d.join(name)).find(|p| p.is_file()) {
            return p;
        }
    }
    panic!("apxs was not found: install apache2-dev (Debian) or httpd-devel, or name it in the variable APXS");
}

fn query(apxs: &PathBuf, what: &str) -> String {
    let out = Command::new(apxs).args(["-q", what]).output();
    let out = out.unwrap_or_else(|e| panic!("{} (variable APXS) cannot be run: {e}", apxs.display()));
    assert!(out.status.success(), "{} -q {what} failed (variable APXS)", apxs.display());
    String::from_utf8(out.stdout).expect("apxs prints text").trim().to_owned()
}

fn main() {
    println!("cargo:rerun-if-changed=c_shim");
    let apxs = apxs();
    let mut flags: Vec<String> = vec![format!("-I{}", query(&apxs, "INCLUDEDIR"))];
    for what in ["APR_INCLUDEDIR", "APU_INCLUDEDIR"] {
        flags.push(format!("-I{}", query(&apxs, what)));
    }
    // APR's types depend on these (64-bit file offsets, feature macros).
    flags.extend(query(&apxs, "EXTRA_CPPFLAGS").split_whitespace().filter(|f| f.starts_with("-D")).map(str::to_owned));

    let mut cc = cc::Build::new();
    cc.file("c_shim/shim.c").std("c99").warnings(true).extra_warnings(true).warnings_into_errors(true);
    // httpd's own headers have unused parameters in inline functions.
    cc.flag("-Wno-unused-parameter");
    for f in &flags {
        cc.flag(f);
    }
    cc.compile("mwr_shim");

    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    bindgen::Builder::default()
        .header("c_shim/wrapper.h")
        .clang_args(&flags)
        .allowlist_function("ap_.*|apr_(p?alloc|palloc|pstrdup|pstrmemdup|pool_cleanup_.*|table_.*|brigade_.*|bucket_.*|os_.*|file_.*|array_.*)|mwr_.*|unixd_.*")
        .allowlist_type("request_rec|conn_rec|server_rec|cmd_rec|command_rec|module|core_dir_config|ap_logconf|ap_regmatch_t|apr_bucket.*|apr_table_entry_t|ap_version_t")
        .allowlist_var("AP_.*|APR_.*|OK|DECLINED|DONE|OR_.*|RSRC_CONF|ACCESS_CONF|EXEC_ON_READ|HTTP_.*|RAW_ARGS|M_.*|MODULE_MAGIC_.*|APLOG_.*|ap_unixd_config|ap_server_conf|ap_top_module|core_module|NOT_IN_.*|REQUEST_.*|GLOBAL_ONLY|OPT_.*|ap_server_root|.*_UNSET")
        .derive_default(false)
        .layout_tests(true)
        .generate_comments(false)
        .prepend_enum_name(false)
        .generate()
        .expect("bindings of httpd's headers (is libclang installed? variable LIBCLANG_PATH)")
        .write_to_file(out.join("bindings.rs"))
        .expect("OUT_DIR is writable");
}
