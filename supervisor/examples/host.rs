//! A binary with nothing but the internal subcommands, for the tests of this crate.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    match mod_wsgi_supervisor::internal(&args) {
        Some(code) => ExitCode::from(code),
        None => {
            eprintln!("usage: host start-keeper|keeper|supervise|exec-worker …");
            ExitCode::from(mod_wsgi_supervisor::EXIT_INTERNAL)
        }
    }
}
