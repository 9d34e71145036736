//! Finds a configured tree of nginx's sources, generates the bindings of what the adapter uses, compiles the C shim.
//!
//! NGINX_SOURCE_DIR names the sources (headers are enough), NGINX_BUILD_DIR what `configure` has made of them (`objs`
//! there, by default). Without them the sources of Debian's package nginx-dev are taken, and configured in a copy with
//! the flags that package brings: they decide the layout of nginx's structures.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where nginx-dev puts sources without C files, and the flags of the distribution's build.
const DEBIAN: &str = "/usr/share/nginx/src";

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

/// A configured copy of nginx-dev's tree.
fn debian(out: &Path) -> (PathBuf, PathBuf) {
    println!("cargo:rerun-if-changed={DEBIAN}/conf_flags");
    assert!(
        Path::new(DEBIAN).join("configure").is_file(),
        "nginx's headers were not found: install nginx-dev (Debian), or name a source tree of the running nginx's version \
         in the variable NGINX_SOURCE_DIR and what its `configure` has made in NGINX_BUILD_DIR"
    );
    let tree = out.join("nginx");
    if tree.exists() {
        fs::remove_dir_all(&tree).expect("OUT_DIR is writable");
    }
    copy(Path::new(DEBIAN), &tree).unwrap_or_else(|e| panic!("{DEBIAN} cannot be copied to {}: {e}", tree.display()));
    let script = "set -e; . ./conf_flags; ./configure \"${NGX_CONF_FLAGS[@]}\"";
    let done = Command::new("bash").args(["-c", script]).current_dir(&tree).output();
    let done = done.unwrap_or_else(|e| panic!("bash cannot be run: {e}"));
    assert!(
        done.status.success(),
        "nginx's configure failed in {} (are libpcre2-dev, libssl-dev and zlib1g-dev installed?):\n{}{}",
        tree.display(),
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr)
    );
    let objs = tree.join("objs");
    (tree, objs)
}

fn tree(out: &Path) -> (PathBuf, PathBuf) {
    for name in ["NGINX_SOURCE_DIR", "NGINX_BUILD_DIR"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let Some(source) = env::var_os("NGINX_SOURCE_DIR").map(PathBuf::from) else { return debian(out) };
    let objs = env::var_os("NGINX_BUILD_DIR").map_or_else(|| source.join("objs"), PathBuf::from);
    for (file, variable) in
        [(source.join("src/core/nginx.h"), "NGINX_SOURCE_DIR"), (objs.join("ngx_auto_config.h"), "NGINX_BUILD_DIR")]
    {
        assert!(file.is_file(), "{} is missing (variable {variable}; run ./configure first)", file.display());
        println!("cargo:rerun-if-changed={}", file.display());
    }
    (source, objs)
}

/// The directories of headers, as nginx's own Makefile names them.
fn includes(source: &Path, objs: &Path) -> Vec<PathBuf> {
    let makefile = objs.join("Makefile");
    let text = fs::read_to_string(&makefile).unwrap_or_else(|e| panic!("{}: {e}", makefile.display()));
    let mut found = vec![objs.to_path_buf()];
    let mut inside = false;
    for line in text.lines() {
        inside |= line.starts_with("ALL_INCS");
        if inside {
            let words = line.trim_end_matches('\\').split_whitespace();
            found.extend(words.filter(|w| !matches!(*w, "ALL_INCS" | "=" | "-I")).map(|w| {
                let path = Path::new(w.strip_prefix("-I").unwrap_or(w));
                if path.is_absolute() { path.to_path_buf() } else { source.join(path) }
            }));
            inside = line.ends_with('\\');
        }
    }
    found.retain(|p| p.is_dir());
    found.dedup();
    found
}

fn main() {
    println!("cargo:rerun-if-changed=c_shim");
    println!("cargo:rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let (source, objs) = tree(&out);
    let dirs = includes(&source, &objs);
    // nginx can be configured without its cache; then the settings have no place in its structures.
    println!("cargo:rustc-check-cfg=cfg(nginx_cache)");
    let header = objs.join("ngx_auto_config.h");
    let config = fs::read_to_string(&header).unwrap_or_else(|e| panic!("{}: {e}", header.display()));
    if config.lines().any(|l| l.split_whitespace().take(2).eq(["#define", "NGX_HTTP_CACHE"])) {
        println!("cargo:rustc-cfg=nginx_cache");
    }

    let mut cc = cc::Build::new();
    cc.file("c_shim/shim.c").std("gnu99").warnings(true).extra_warnings(true).warnings_into_errors(true);
    // nginx's own headers have unused parameters in inline functions.
    cc.flag("-Wno-unused-parameter").includes(&dirs);
    cc.compile("mwr_nginx_shim");

    bindgen::Builder::default()
        .header("c_shim/shim.h")
        .clang_args(dirs.iter().map(|d| format!("-I{}", d.display())))
        .allowlist_function("ngx_.*|mwr_.*")
        .allowlist_type("ngx_.*")
        .allowlist_var("NGX_.*|ngx_.*|mwr_.*|nginx_version|NGINX_.*")
        .blocklist_item("NGX_(RTSIG|MAX_UINT).*")
        .derive_default(false)
        .layout_tests(true)
        .generate_comments(false)
        .prepend_enum_name(false)
        .generate()
        .expect("bindings of nginx's headers (is libclang installed? variable LIBCLANG_PATH)")
        .write_to_file(out.join("bindings.rs"))
        .expect("OUT_DIR is writable");
}
