//! Which application is meant: a script file, or `package.module:callable`.

use crate::access::{Need, first_blocked};
use crate::error::Error;
use std::path::{Path, PathBuf};

/// The application as the command line names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Application {
    Script { path: PathBuf, callable: String },
    Module { module: String, callable: String },
}

impl Application {
    pub fn callable(&self) -> &str {
        match self {
            Application::Script { callable, .. } | Application::Module { callable, .. } => callable,
        }
    }
    /// As the user would say it.
    pub fn label(&self) -> String {
        match self {
            Application::Script { path, .. } => path.display().to_string(),
            Application::Module { module, callable } => format!("{module}:{callable}"),
        }
    }
}

/// Decides between script and module. `callable`: `--callable-object`, when given. Whether a module exists is found out by
/// the import check.
pub fn choose(names: &[String], callable: Option<&str>) -> Result<Application, Error> {
    let name = match names {
        [] => return Err(Error::NoApplication),
        [name] => name,
        several => {
            let why = "several applications are named; one express serves one".to_string();
            return Err(Error::ApplicationAmbiguous { name: several.join(" "), why });
        }
    };
    if let Some(given) = callable
        && !is_dotted_name(given)
    {
        return Err(Error::Value {
            option: "--callable-object",
            value: given.into(),
            why: "must be the name of a callable".into(),
        });
    }
    let path = Path::new(name);
    let module = name.split_once(':').filter(|(module, _)| is_dotted_name(module));
    match (path.is_file(), module) {
        (true, Some(_)) => Err(Error::ApplicationAmbiguous {
            name: name.clone(),
            why: format!("a file has that name; write ./{name} for the file, or rename it"),
        }),
        (true, None) => {
            let path = path.canonicalize().map_err(Error::io(format!("cannot find '{name}'")))?;
            Ok(Application::Script { path, callable: callable.unwrap_or("application").into() })
        }
        (false, Some((module, named))) => {
            if !is_dotted_name(named) {
                let why = "behind the colon stands the name of a callable; a factory is not called, \
                           wrap it in a module or script";
                return Err(Error::ApplicationMissing { name: name.clone(), why: why.into() });
            }
            if let Some(given) = callable.filter(|c| *c != named) {
                let why = format!("it names the callable '{named}', and --callable-object names '{given}'");
                return Err(Error::ApplicationAmbiguous { name: name.clone(), why });
            }
            Ok(Application::Module { module: module.into(), callable: named.into() })
        }
        (false, None) => Err(Error::ApplicationMissing { name: name.clone(), why: why_missing(name, path) }),
    }
}

fn why_missing(name: &str, path: &Path) -> String {
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_dir() => "it is a directory; name the script in it".into(),
        Ok(_) => "it is no regular file".into(),
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            let absolute = std::path::absolute(path).unwrap_or(path.to_path_buf());
            match first_blocked(&absolute, Need::Read) {
                Some((blocker, _)) => format!("'{}' does not let this user in", blocker.display()),
                None => e.to_string(),
            }
        }
        Err(e) if is_dotted_name(name) && !name.ends_with(".wsgi") && !name.ends_with(".py") => {
            format!("{e}; for a module write {name}:application")
        }
        Err(e) => e.to_string(),
    }
}

/// Python identifiers joined by dots.
fn is_dotted_name(text: &str) -> bool {
    let identifier = |part: &str| {
        let mut chars = part.chars();
        chars.next().is_some_and(|c| c == '_' || c.is_alphabetic()) && chars.all(|c| c == '_' || c.is_alphanumeric())
    };
    !text.is_empty() && text.split('.').all(identifier)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(names: &[&str], callable: Option<&str>) -> &'static str {
        let names: Vec<String> = names.iter().map(|n| n.to_string()).collect();
        choose(&names, callable).unwrap_err().code()
    }

    #[test]
    fn says_what_is_wrong() {
        assert_eq!(code(&[], None), "MWR0601");
        assert_eq!(code(&["a.wsgi", "b.wsgi"], None), "MWR0603");
        assert_eq!(code(&["nonexistent.wsgi"], None), "MWR0602");
        assert_eq!(code(&["mod:create_app()"], None), "MWR0602");
        assert_eq!(code(&["mod:app"], Some("other")), "MWR0603");
        assert_eq!(code(&["mod:app"], Some("no name")), "MWR0617");
        assert_eq!(code(&["/"], None), "MWR0602");
    }

    #[test]
    fn tells_scripts_from_modules() {
        let module = choose(&["package.module:app".into()], None).unwrap();
        assert_eq!(module, Application::Module { module: "package.module".into(), callable: "app".into() });
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        let script = choose(&[file.into()], Some("app")).unwrap();
        assert_eq!(script.callable(), "app");
        assert!(script.label().ends_with("Cargo.toml"));
    }
}
