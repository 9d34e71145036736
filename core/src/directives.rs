//! Directives: one table makes the servers' command tables, parsing, help and docs. Names and meanings are mod_wsgi's.

pub mod nginx;

use crate::config::{Alias, DirConfig, Pattern, Selector, ServerConfig};
use crate::options;
use std::ffi::CStr;

/// Where a directive may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Context {
    /// Main server only.
    Server,
    /// Main server and virtual hosts.
    Host,
    /// Also `<Directory>`, `<Location>` and their like.
    Directory,
    /// Also `.htaccess` with AllowOverride FileInfo.
    File,
    /// Also `.htaccess` with AllowOverride AuthConfig.
    Auth,
}

/// What a directive does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Works as documented.
    Full,
    /// Accepted so that an existing configuration loads; a start-up warning says that it does nothing.
    None,
    /// As `None`, but without a warning: it concerns Python inside the server, which does not exist here.
    Embedded,
}

/// One directive: everything that is said about it anywhere.
pub struct Directive {
    pub name: &'static str,
    /// Name and help for a server's command table, which wants C strings.
    pub c_name: &'static CStr,
    pub c_help: &'static CStr,
    pub syntax: &'static str,
    pub default: &'static str,
    pub context: Context,
    pub effect: Effect,
    pub help: &'static str,
    set: Setter,
}

type Setter = fn(&mut Target<'_>, &[String]) -> Result<(), String>;

/// What a directive may change.
pub struct Target<'a> {
    /// Settings of the server or virtual host.
    pub server: &'a mut ServerConfig,
    /// Settings of the place the directive stands in.
    pub dir: &'a mut DirConfig,
    /// Compiles a regular expression with the server's own engine and gives the handle to store.
    pub compile: &'a mut dyn FnMut(&str) -> Result<usize, String>,
}

const fn c_string(text: &'static str) -> &'static CStr {
    match CStr::from_bytes_with_nul(text.as_bytes()) {
        Ok(c) => c,
        Err(_) => panic!("a NUL byte inside a name"),
    }
}

fn one(words: &[String]) -> Result<&str, String> {
    match words {
        [w] => Ok(w),
        _ => Err("takes one argument".to_owned()),
    }
}

fn flag(words: &[String]) -> Result<bool, String> {
    match one(words)? {
        w if w.eq_ignore_ascii_case("on") => Ok(true),
        w if w.eq_ignore_ascii_case("off") => Ok(false),
        w => Err(format!("'{w}' must be On or Off")),
    }
}

fn alias(t: &mut Target<'_>, words: &[String], regex: bool) -> Result<(), String> {
    let [from, to, rest @ ..] = words else {
        return Err("takes a URL path and a script".to_owned());
    };
    let pattern = if regex { Pattern::Regex((t.compile)(from)?) } else { Pattern::Prefix(from.clone()) };
    if !regex && !from.starts_with('/') {
        return Err(format!("URL path '{from}' must begin with a slash"));
    }
    let mut a = Alias::new(pattern, from.clone(), to.clone());
    for word in rest {
        let (k, v) = word.split_once('=').ok_or_else(|| format!("'{word}' is not option=value"))?;
        match k {
            "process-group" => a.dir.process_group = Some(Selector::parse(v)?),
            "application-group" => a.dir.application_group = Some(Selector::parse(v)?),
            "callable-object" => a.dir.callable_object = Some(v.to_owned()),
            "pass-authorization" => a.dir.pass_authorization = Some(flag(&[v.to_owned()])?),
            "request-buffering" => a.dir.request_buffering = Some(flag(&[v.to_owned()])?),
            _ => {
                return Err(format!(
                    "unknown option '{k}': process-group, application-group, callable-object, pass-authorization and \
                     request-buffering are known"
                ));
            }
        }
    }
    t.server.aliases.push(a);
    Ok(())
}

fn ignore(_: &mut Target<'_>, _: &[String]) -> Result<(), String> {
    Ok(())
}

macro_rules! directives {
    ($($name:literal $syntax:literal $default:literal $context:ident $effect:ident $help:literal $set:expr;)*) => {
        /// Every directive, in the order of the documentation.
        pub const TABLE: &[Directive] = &[$(Directive {
            name: $name, c_name: c_string(concat!($name, "\0")), c_help: c_string(concat!($syntax, "\0")), syntax: $syntax, default: $default, context: Context::$context, effect: Effect::$effect,
            help: $help, set: $set,
        }),*];
    };
}

directives! {
    "WSGIScriptAlias" "url-path script [process-group=…] [application-group=…] [callable-object=…] [pass-authorization=On|Off] [request-buffering=On|Off]" "" Host Full
        "Maps a URL prefix to a script, or to a directory of scripts. The first matching alias wins; options stand for the directives of their names. With literal groups the script is loaded when workers start."
        |t, w| alias(t, w, false);
    "WSGIScriptAliasMatch" "regex script [options of WSGIScriptAlias]" "" Host Full
        "The same with a regular expression; $1 to $9 in the script are its groups."
        |t, w| alias(t, w, true);
    "WSGIDaemonProcess" "name [option=value …]" "" Host Full
        "Declares a daemon process group: supervised Python processes that run applications."
        |t, w| { let o = options::parse(w)?; t.server.groups.push(o); Ok(()) };
    "WSGIProcessGroup" "name | %{GLOBAL} | %{ENV:variable}" "%{GLOBAL}" Directory Full
        "The daemon process group that runs the application; %{GLOBAL} is the automatic group."
        |t, w| { t.dir.process_group = Some(Selector::parse(one(w)?)?); Ok(()) };
    "WSGIApplicationGroup" "name | %{GLOBAL} | %{SERVER} | %{HOST} | %{RESOURCE} | %{ENV:variable}" "%{RESOURCE}" Directory Full
        "Applications of one application group share processes. %{GLOBAL} is the group's own pool; every other group gets worker processes of its own, started at its first request."
        |t, w| { t.dir.application_group = Some(Selector::parse(one(w)?)?); Ok(()) };
    "WSGICallableObject" "name | %{ENV:variable}" "application" File Full
        "Name of the WSGI callable in the script."
        |t, w| { t.dir.callable_object = Some(one(w)?.to_owned()); Ok(()) };
    "WSGIPassAuthorization" "On | Off" "Off" File Full
        "Whether the application sees the Authorization header."
        |t, w| { t.dir.pass_authorization = Some(flag(w)?); Ok(()) };
    "WSGIScriptReloading" "On | Off" "On" File Full
        "Whether a changed modification time of the script replaces the workers that have loaded it."
        |t, w| { t.dir.script_reloading = Some(flag(w)?); Ok(()) };
    "WSGIRequestTimeout" "seconds" "request-timeout of the daemon process group" Directory Full
        "The request-timeout of requests to this place; 0 = never, for streams and long downloads."
        |t, w| { t.dir.request_timeout = Some(options::request_timeout(one(w)?)?); Ok(()) };
    "WSGIErrorOverride" "On | Off" "Off" File Full
        "On replaces the application's answers with status 4xx and 5xx by the server's own page (ErrorDocument)."
        |t, w| { t.dir.error_override = Some(flag(w)?); Ok(()) };
    "WSGIRequestBuffering" "On | Off" "request-buffering of the process group, else On" File Full
        "Off: the application reads the body while the client sends it and may answer meanwhile (uploads with progress, early refusals, two-way streams); a slow sender then holds its thread."
        |t, w| { t.dir.request_buffering = Some(flag(w)?); Ok(()) };
    "WSGISocketPrefix" "path" "wsgi in the server's run-time directory" Server Full
        "Prefix of the run directory, which holds the supervisor's and the workers' sockets: PREFIX.mod-wsgi-rs."
        |t, w| { t.server.socket_prefix = Some(one(w)?.to_owned()); Ok(()) };
    "WSGISpoolDirectory" "directory" "/var/tmp" Server Full
        "Where request bodies over 64 KiB, and answers whose clients read slowly, lie until they are needed (as files without a name). The server's user must be able to write there; it should be a disk, not memory."
        |t, w| {
            let dir = one(w)?;
            if !std::path::Path::new(dir).is_dir() || !dir.starts_with('/') {
                return Err(format!("'{dir}' must be the absolute path of a directory"));
            }
            t.server.spool_directory = Some(dir.to_owned());
            Ok(())
        };
    "WSGISpoolLimit" "bytes, with K, M or G" "a tenth of the file system, at most 4G" Server Full
        "What those files may hold in all, counted anew at each restart of the server. Beyond it requests with such bodies get 503, and answers go at the pace of their clients."
        |t, w| { t.server.spool_limit = Some(options::bytes(one(w)?)?); Ok(()) };
    "WSGIRestrictEmbedded" "On | Off" "Off" Server Full
        "On refuses applications without WSGIProcessGroup (500) instead of running them in the automatic group."
        |t, w| { t.server.restrict_embedded = Some(flag(w)?); Ok(()) };
    "WSGIPythonHome" "directory" "/usr" Server Full
        "Default of python-home for groups that do not set it."
        |t, w| { t.server.python_home = Some(one(w)?.to_owned()); Ok(()) };
    "WSGIPythonPath" "dir:dir" "" Server Full
        "python-path of the automatic group."
        |t, w| { t.server.python_path.extend(one(w)?.split(':').filter(|s| !s.is_empty()).map(str::to_owned)); Ok(()) };
    "WSGIReloadOnRestart" "On | Changed" "On" Server Full
        "Whether a restart of the server replaces the workers of every group (deploys rely on it) or only of groups whose settings changed."
        |t, w| { t.server.reload_all = Some(match one(w)?.to_ascii_lowercase().as_str() { "on" => true, "changed" => false, o => return Err(format!("'{o}' must be On or Changed")) }); Ok(()) };
    "WSGISupervisor" "file" "mod-wsgi-rs beside the module" Server Full
        "The program that supervises the workers."
        |t, w| { t.server.supervisor = Some(one(w)?.to_owned()); Ok(()) };
    "WSGIChunkedRequest" "On | Off" "On" File Embedded
        "Accepted for mod_wsgi's configurations: chunked request bodies are always accepted here."
        ignore;
    "WSGISocketRotation" "On | Off" "" Server Embedded "Accepted: sockets outlive graceful restarts here." ignore;
    "WSGIAcceptMutex" "name" "" Server Embedded "Accepted: workers here accept on sockets of their own." ignore;
    "WSGIPythonEggs" "directory" "" Server Embedded "Accepted: there is no Python inside the server." ignore;
    "WSGIPythonHashSeed" "value" "" Server None "Not in this version." ignore;
    "WSGIPythonOptimize" "0-2" "" Server None "Not in this version." ignore;
    "WSGIPythonWarnings" "spec" "" Server None "Not in this version." ignore;
    "WSGIDontWriteBytecode" "On | Off" "" Server None "Not in this version." ignore;
    "WSGIDestroyInterpreter" "On | Off" "" Server Embedded "Accepted: workers are processes and end as such." ignore;
    "WSGISwitchInterval" "seconds" "" Server None "Not in this version." ignore;
    "WSGIPerInterpreterGIL" "On | Off" "" Server Embedded "Accepted: application groups are processes here." ignore;
    "WSGIFreeThreading" "On | Off" "" Server None "Not in this version." ignore;
    "WSGICaseSensitivity" "On | Off" "" Server Embedded "Accepted: file names are case-sensitive on Linux." ignore;
    "WSGIServerMetrics" "On | Off" "" Server None "Not in this version." ignore;
    "WSGISlowRequests" "seconds" "" Server None "Not in this version." ignore;
    "WSGITelemetryService" "unix:path" "" Server None "Not in this version." ignore;
    "WSGITelemetryOptions" "options" "" Server None "Not in this version." ignore;
    "WSGIRestrictStdin" "On | Off" "" Server Embedded "Accepted: standard input of workers is empty." ignore;
    "WSGIRestrictStdout" "On | Off" "" Server Embedded "Accepted: standard output of workers goes to the error log." ignore;
    "WSGIRestrictSignal" "On | Off" "" Server None "Not in this version: applications may set signal handlers." ignore;
    "WSGIVerboseDebugging" "On | Off" "" Server Embedded "Accepted." ignore;
    "WSGIMapHEADToGET" "On | Off | Auto" "" File None "Not in this version: HEAD is passed as HEAD." ignore;
    "WSGIIgnoreActivity" "On | Off" "" File None "Not in this version." ignore;
    "WSGIEnableSendfile" "On | Off" "" File None "Not in this version: EnableSendfile decides." ignore;
    "WSGIPassApacheRequest" "On | Off" "" Directory Embedded "Accepted: there is no Python inside the server." ignore;
}

/// Applies directive `index` of [`TABLE`] with its arguments. An error names directive, value and remedy.
pub fn apply(index: usize, target: &mut Target<'_>, words: &[String]) -> Result<(), String> {
    let d = TABLE.get(index).ok_or("no such directive")?;
    if d.effect == Effect::None {
        target.server.without_effect.push(d.name);
    }
    (d.set)(target, words).map_err(|e| if e.starts_with(d.name) { e } else { format!("{}: {e}", d.name) })
}

/// Reads a quoted string whose opening quote is the first character of `text`: the content, and what follows it. A
/// backslash protects a quote of the same kind or a backslash; without a closing quote all of the text is content.
fn quoted(text: &str) -> (String, &str) {
    let mut chars = text.char_indices();
    let Some((_, quote)) = chars.next() else { return (String::new(), "") };
    let mut content = String::new();
    while let Some((i, c)) = chars.next() {
        if c == quote {
            return (content, &text[i + 1..]);
        }
        let next = text[i + c.len_utf8()..].chars().next();
        match next {
            Some(n) if c == '\\' && (n == quote || n == '\\') => {
                content.push(n);
                chars.next();
            }
            _ => content.push(c),
        }
    }
    (content, "")
}

/// Splits the arguments of a directive as httpd does: white space separates, quotes (single or double) around a word or
/// around the value after `name=` join.
pub fn split_words(args: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = args.trim_start();
    while let Some(first) = rest.chars().next() {
        let mut word = String::new();
        if first == '"' || first == '\'' {
            (word, rest) = quoted(rest);
        } else {
            let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
            let value = rest[..end].find('=').map(|i| i + 1).filter(|i| rest[*i..].starts_with(['"', '\'']));
            word.push_str(&rest[..value.unwrap_or(end)]);
            rest = &rest[value.unwrap_or(end)..];
            if value.is_some() {
                let (content, after) = quoted(rest);
                word.push_str(&content);
                rest = after;
            }
        }
        words.push(word);
        rest = rest.trim_start();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(name: &str, args: &str) -> Result<(ServerConfig, DirConfig), String> {
        let (mut server, mut dir) = (ServerConfig::default(), DirConfig::default());
        let index = TABLE.iter().position(|d| d.name == name).unwrap();
        let mut t = Target { server: &mut server, dir: &mut dir, compile: &mut |_| Ok(3) };
        apply(index, &mut t, &split_words(args))?;
        Ok((server, dir))
    }

    #[test]
    fn words_are_split_as_httpd_does() {
        assert_eq!(split_words(r#"a "b c" 'd "e"' "f\"g\\h" "#), ["a", "b c", "d \"e\"", "f\"g\\h"]);
        assert_eq!(split_words("  "), Vec::<String>::new());
        assert_eq!(split_words(r#""open"#), ["open"]);
        assert_eq!(split_words(r#"x home="/a b" env='K=v "w"' y=z"#), ["x", "home=/a b", "env=K=v \"w\"", "y=z"]);
    }

    #[test]
    fn aliases_take_their_options() {
        let (s, _) = run("WSGIScriptAlias", "/ /srv/app.wsgi process-group=blog application-group=%{GLOBAL}").unwrap();
        assert_eq!(s.aliases[0].dir.process_group, Some(Selector::Literal("blog".into())));
        assert_eq!(s.aliases[0].dir.application_group, Some(Selector::Global));
        let (s, _) = run("WSGIScriptAliasMatch", "^/a/([^/]+) /srv/$1.wsgi").unwrap();
        assert!(matches!(s.aliases[0].pattern, Pattern::Regex(3)));
    }

    #[test]
    fn errors_name_the_directive() {
        assert_eq!(
            run("WSGIPassAuthorization", "maybe").unwrap_err(),
            "WSGIPassAuthorization: 'maybe' must be On or Off"
        );
        assert!(run("WSGIScriptAlias", "/ /a x=y").unwrap_err().contains("unknown option 'x'"));
        assert!(run("WSGIDaemonProcess", "x threads=no").unwrap_err().starts_with("WSGIDaemonProcess x: threads='no'"));
        assert!(run("WSGIProcessGroup", "%{NOPE}").unwrap_err().contains("%{NOPE}"));
    }

    #[test]
    fn directives_without_effect_are_remembered() {
        assert_eq!(run("WSGIMapHEADToGET", "On").unwrap().0.without_effect, ["WSGIMapHEADToGET"]);
        assert!(run("WSGIChunkedRequest", "On").unwrap().0.without_effect.is_empty());
    }
}
