//! Where the value of an option comes from: the command line, a file of arguments, a variable of the environment, what a
//! container presets. The first of them that names an option wins whole; the table's default comes last.

use crate::error::Error;
use crate::options::{self, Kind, OPTIONS, Opt};
use clap::ArgMatches;
use clap::parser::ValueSource;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

/// What variables of options begin with.
pub const PREFIX: &str = "MOD_WSGI_RS_";

/// Variables that hosting platforms and other servers agree on, and the option each of them is.
const COMMON: [(&str, &str); 2] = [("PORT", "port"), ("WEB_CONCURRENCY", "processes")];

/// Options with their words, from one source.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Source {
    pub options: BTreeMap<&'static str, Vec<OsString>>,
    pub applications: Vec<OsString>,
}

/// The variable of an option: `--url-alias` is `MOD_WSGI_RS_URL_ALIAS`.
pub fn variable(option: &str) -> String {
    format!("{PREFIX}{}", option.to_ascii_uppercase().replace('-', "_"))
}

impl Source {
    /// What these words of a command line say. `what` begins the message when they are wrong.
    pub fn words(words: &[OsString], what: &str) -> Result<Source, Error> {
        let line = std::iter::once(OsString::from("express")).chain(words.iter().cloned());
        let matches = options::command("express").try_get_matches_from(line).map_err(|e| refusal(what, &e))?;
        Ok(Source::parsed(&matches))
    }

    /// What a parsed command line says.
    pub fn parsed(matches: &ArgMatches) -> Source {
        let mut source = Source::default();
        for o in OPTIONS.iter().filter(|o| matches.value_source(o.name) == Some(ValueSource::CommandLine)) {
            let long = OsString::from(format!("--{}", o.name));
            let mut words = Vec::new();
            if matches!(o.kind, Kind::Flag) {
                words.push(long);
            } else {
                let values: Vec<&OsStr> = matches.get_raw(o.name).into_iter().flatten().collect();
                for value in values.chunks(o.values.len().max(1)) {
                    push(&mut words, o, value);
                }
            }
            source.options.insert(o.name, words);
        }
        source.applications = matches.get_raw("application").into_iter().flatten().map(OsStr::to_owned).collect();
        source
    }

    /// What the variables say. An empty one counts as not set; one that names no option is refused.
    pub fn variables(environment: impl Iterator<Item = (OsString, OsString)>) -> Result<Source, Error> {
        let environment: BTreeMap<String, OsString> = environment
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .filter(|(name, value)| {
                !value.is_empty() && (name.starts_with(PREFIX) || COMMON.iter().any(|(n, _)| n == name))
            })
            .collect();
        let mut source = Source::default();
        for (name, option) in COMMON {
            if let (Some(value), Some(o)) = (environment.get(name), OPTIONS.iter().find(|o| o.name == option)) {
                source.options.insert(o.name, of_variable(o, name, value)?);
            }
        }
        let of_a_cluster = environment.contains_key("MOD_WSGI_RS_SERVICE_HOST");
        for (name, value) in environment.iter().filter(|(name, _)| name.starts_with(PREFIX)) {
            // Kubernetes describes a service called mod-wsgi-rs by variables of this form.
            if of_a_cluster && (is_service_link(name) || value.to_string_lossy().starts_with("tcp://")) {
                continue;
            }
            let Some(o) = OPTIONS.iter().find(|o| variable(o.name) == *name) else {
                return Err(Error::Usage(format!("the variable {name} names no option{}", similar(name))));
            };
            source.options.insert(o.name, of_variable(o, name, value)?);
        }
        Ok(source)
    }
}

/// Puts the sources together, the strongest first, as words of a command line.
pub fn merge(sources: &[Source]) -> Vec<OsString> {
    let mut words = Vec::new();
    for o in OPTIONS.iter() {
        if let Some(found) = sources.iter().find_map(|s| s.options.get(o.name)) {
            words.extend(found.iter().cloned());
        }
    }
    if let Some(found) = sources.iter().find(|s| !s.applications.is_empty()) {
        words.push("--".into());
        words.extend(found.applications.iter().cloned());
    }
    words
}

/// The command line with what the environment adds to it.
pub fn with_environment(matches: &ArgMatches) -> Result<ArgMatches, Error> {
    let words = merge(&[Source::parsed(matches), Source::variables(std::env::vars_os())?]);
    let line = std::iter::once(OsString::from("express")).chain(words);
    options::command("express").try_get_matches_from(line).map_err(|e| refusal("", &e))
}

/// One occurrence of an option.
fn push(words: &mut Vec<OsString>, o: &Opt, values: &[&OsStr]) {
    let mut long = OsString::from(format!("--{}", o.name));
    match values {
        // A value may begin with a dash.
        [one] => {
            long.push("=");
            long.push(one);
            words.push(long);
        }
        many => {
            words.push(long);
            words.extend(many.iter().map(|v| (*v).to_owned()));
        }
    }
}

/// The words of an option whose value is that of a variable. An option that has several values or may be given more than
/// once takes words, quoted as in a shell; any other takes the text as it is.
fn of_variable(o: &Opt, name: &str, value: &OsStr) -> Result<Vec<OsString>, Error> {
    let mut words = Vec::new();
    let refuse = |why: &str| Err(Error::Usage(format!("the variable {name} {why}: '{}'", value.to_string_lossy())));
    match o.kind {
        Kind::Flag => match value.to_str().map(str::to_ascii_lowercase).as_deref() {
            Some("1" | "true" | "yes" | "on") => words.push(format!("--{}", o.name).into()),
            Some("0" | "false" | "no" | "off") => {}
            _ => return refuse("must be one of 1, true, yes, on, 0, false, no, off"),
        },
        _ if o.repeatable || o.values.len() > 1 => {
            let Some(split) = value.to_str().and_then(shlex::split) else {
                return refuse("must be words of UTF-8 text, with its quotes closed");
            };
            let split: Vec<&OsStr> = split.iter().map(OsStr::new).collect();
            if split.is_empty() || !split.len().is_multiple_of(o.values.len()) {
                return refuse(&format!("must be {} for each time the option is meant", o.values.join(" and ")));
            }
            for values in split.chunks(o.values.len()) {
                push(&mut words, o, values);
            }
        }
        _ => push(&mut words, o, &[value]),
    }
    // Judged by itself, so that a refusal can name the variable.
    Source::words(&words, &format!("the variable {name}: "))?;
    Ok(words)
}

fn is_service_link(name: &str) -> bool {
    let rest = name.strip_prefix(PREFIX).unwrap_or_default();
    rest == "SERVICE_HOST"
        || rest.starts_with("SERVICE_PORT")
        || rest.strip_prefix("PORT_").is_some_and(|r| r.starts_with(|c: char| c.is_ascii_digit()))
}

/// The option that was probably meant.
fn similar(name: &str) -> String {
    let close = OPTIONS.iter().map(|o| (distance(&variable(o.name), name), o)).min_by_key(|(d, _)| *d);
    match close {
        Some((d, o)) if d <= 3 => format!("; {} is --{}", variable(o.name), o.name),
        _ => "; see mod-wsgi-rs express --help".into(),
    }
}

/// How many letters must be put in, left out or changed.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (corner + usize::from(x != y)).min(above + 1).min(row[j] + 1);
            corner = above;
        }
    }
    row[b.len()]
}

/// clap's refusal in one line.
fn refusal(what: &str, e: &clap::Error) -> Error {
    let text = e.to_string();
    let lines: Vec<&str> = text.lines().map(str::trim).take_while(|l| !l.is_empty()).collect();
    Error::Usage(format!("{what}{}", lines.join("; ").trim_start_matches("error: ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(pairs: &[(&str, &str)]) -> Result<Source, Error> {
        Source::variables(pairs.iter().map(|(n, v)| (n.into(), v.into())))
    }

    fn words(source: &Source, option: &str) -> Vec<String> {
        source.options[option].iter().map(|w| w.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn each_option_has_its_variable() {
        let names: std::collections::BTreeSet<String> = OPTIONS.iter().map(|o| variable(o.name)).collect();
        assert_eq!(names.len(), OPTIONS.len());
        let s = source(&[
            ("MOD_WSGI_RS_PORT", "81"),
            ("MOD_WSGI_RS_ACCESS_LOG", "yes"),
            ("MOD_WSGI_RS_SETENV", "A 'b c' D -e"),
            ("MOD_WSGI_RS_PYTHON_PATH", "/a '/b c'"),
            ("MOD_WSGI_RS_MAXIMUM_REQUESTS", "5"),
            ("MOD_WSGI_RS_HOST", ""),
            ("HOME", "/root"),
        ])
        .unwrap();
        assert_eq!(words(&s, "port"), ["--port=81"]);
        assert_eq!(words(&s, "access-log"), ["--access-log"]);
        assert_eq!(words(&s, "setenv"), ["--setenv", "A", "b c", "--setenv", "D", "-e"]);
        assert_eq!(words(&s, "python-path"), ["--python-path=/a", "--python-path=/b c"]);
        assert_eq!(words(&s, "maximum-requests"), ["--maximum-requests=5"]);
        assert!(!s.options.contains_key("host"));
    }

    #[test]
    fn common_variables_are_weaker() {
        let s = source(&[("PORT", "81"), ("WEB_CONCURRENCY", "3"), ("MOD_WSGI_RS_PORT", "82")]).unwrap();
        assert_eq!(
            (words(&s, "port"), words(&s, "processes")),
            (vec!["--port=82".into()], vec!["--processes=3".into()])
        );
    }

    #[test]
    fn a_refusal_is_one_line_that_names_the_variable() {
        for (name, value, part) in [
            ("MOD_WSGI_RS_PORT", "70000", "70000 is not in 1..=65535"),
            ("PORT", "x", "'x'"),
            ("MOD_WSGI_RS_ACCESS_LOG", "perhaps", "must be one of"),
            ("MOD_WSGI_RS_SETENV", "A", "KEY and VALUE"),
            ("MOD_WSGI_RS_SETENV", "A 'b", "quotes"),
            ("MOD_WSGI_RS_PROT", "1", "MOD_WSGI_RS_PORT is --port"),
            ("MOD_WSGI_RS_SOMETHING_ELSE", "1", "names no option"),
        ] {
            let text = source(&[(name, value)]).unwrap_err().to_string();
            assert!(text.contains(name) && text.contains(part) && text.lines().count() == 1, "{text}");
        }
    }

    #[test]
    fn a_service_of_a_cluster_is_no_option() {
        let link = [
            ("MOD_WSGI_RS_SERVICE_HOST", "10.0.0.1"),
            ("MOD_WSGI_RS_SERVICE_PORT_HTTP", "80"),
            ("MOD_WSGI_RS_PORT", "tcp://10.0.0.1:80"),
            ("MOD_WSGI_RS_PORT_80_TCP_ADDR", "10.0.0.1"),
            ("MOD_WSGI_RS_THREADS", "7"),
        ];
        let s = source(&link).unwrap();
        assert_eq!(s.options.keys().collect::<Vec<_>>(), [&"threads"]);
    }

    #[test]
    fn the_first_source_wins_whole() {
        let line = ["--setenv", "A", "1", "a.wsgi", "--threads", "2"].map(OsString::from);
        let first = Source::words(&line, "").unwrap();
        let second = source(&[("MOD_WSGI_RS_SETENV", "B 2"), ("PORT", "81"), ("MOD_WSGI_RS_THREADS", "9")]).unwrap();
        let all: Vec<String> = merge(&[first, second]).iter().map(|w| w.to_string_lossy().into_owned()).collect();
        assert_eq!(all, ["--setenv", "A", "1", "--port=81", "--threads=2", "--", "a.wsgi"]);
    }
}
