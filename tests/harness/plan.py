"""What a site is made of, in no server's words: groups of workers, scripts, settings. Each server writes its own
configuration of it, so that the same test runs on every one."""

from __future__ import annotations

import dataclasses
import shlex


@dataclasses.dataclass
class Script:
    """An application at a place."""

    #: below apps/ unless absolute
    file: str
    group: str = "g"
    application: str = "%{GLOBAL}"
    callable: str = ""

    @property
    def path(self) -> str:
        return self.file if self.file.startswith(("/", "{")) else "{apps}/" + self.file


@dataclasses.dataclass
class Plan:
    """One site. The group `g` runs the script at /, unless there is none."""

    #: options of the group `g`
    options: str = ""
    #: the script at /; None: there is none
    root: str | Script | None = "life.wsgi"
    #: other groups, and their options
    groups: dict[str, str] = dataclasses.field(default_factory=dict)
    #: other places, and their scripts
    scripts: dict[str, Script] = dataclasses.field(default_factory=dict)
    #: directories of files at places that end in a slash
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    #: settings of the whole site, by the words that the directives of both servers share: `script_reloading`
    settings: dict[str, str] = dataclasses.field(default_factory=dict)
    #: the same for places
    places: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    #: more lines in the words of one server, by its name; "nginx server" are those of nginx's server block
    own: dict[str, str] = dataclasses.field(default_factory=dict)

    def all_groups(self) -> dict[str, str]:
        """Every group with its options."""
        return {"g": self.options, **self.groups}

    def all_scripts(self) -> dict[str, Script]:
        """Every script by its place, the most particular first."""
        found = dict(self.scripts)
        if self.root is not None:
            found["/"] = self.root if isinstance(self.root, Script) else Script(self.root)
        return dict(sorted(found.items(), key=lambda item: -len(item[0])))

    def replace(self, **changes: object) -> Plan:
        """The same with other values."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    # -- Apache

    def apache(self) -> str:
        """Lines of the main server."""
        lines = [self.own.get("apache", "")]
        lines += [f"WSGIDaemonProcess {name} {options}" for name, options in self.all_groups().items()]
        lines += [f"{_camel(name)} {value}" for name, value in self.settings.items()]
        lines += [f'Alias {place.rstrip("/")} "{where}"' for place, where in self.files.items()]
        for place, s in self.all_scripts().items():
            more = f" callable-object={s.callable}" if s.callable else ""
            groups = f"process-group={s.group} application-group={s.application}"
            lines.append(f'WSGIScriptAlias {place} "{s.path}" {groups}{more}')
        for place, settings in self.places.items():
            lines += [f"<Location {place}>", *(f"{_camel(k)} {v}" for k, v in settings.items()), "</Location>"]
        return "\n".join(lines) + "\n"

    # -- nginx

    def nginx(self) -> tuple[str, str]:
        """Lines of the http block and of the server block."""
        http = [self.own.get("nginx", "")]
        http += [f"wsgi_daemon_process {name} {_words(options)};" for name, options in self.all_groups().items()]
        http += [f"wsgi_{name} {_words(value)};" for name, value in self.settings.items()]
        server = [self.own.get("nginx server", "")]
        server += [f"location {place} {{ alias {where}/; }}" for place, where in self.files.items()]
        scripts = self.all_scripts()
        server += [_location(place, place, s, {}) for place, s in scripts.items()]
        for place, settings in self.places.items():
            mount = next(m for m in scripts if place.startswith(m))
            server.append(_location(place, mount, scripts[mount], settings))
        return "\n".join(http) + "\n", "\n".join(server) + "\n"


def _location(place: str, mount: str, s: Script, settings: dict[str, str]) -> str:
    lines = [f"wsgi_script {_words(shlex.quote(s.path))}{'' if mount == '/' else ' mount=' + mount}"]
    lines += [f"wsgi_process_group {s.group}", f'wsgi_application_group "{s.application}"']
    lines += [f"wsgi_callable_object {s.callable}"] if s.callable else []
    lines += [f"wsgi_{k} {_words(v)}" for k, v in settings.items()]
    return f"location {place} {{ {'; '.join(lines)}; }}"


def _camel(name: str) -> str:
    return "WSGI" + "".join(word.capitalize() for word in name.split("_"))


def _words(text: str) -> str:
    """Words as httpd has them, with nginx's quotes."""
    special = set('{};"\\ ')
    return " ".join(
        w if w and not set(w) & special else '"' + w.replace("\\", "\\\\").replace('"', '\\"') + '"'
        for w in shlex.split(text)
    )
