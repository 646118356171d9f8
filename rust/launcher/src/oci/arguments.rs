//! The command line: options before the command are for all commands, those behind it are its own.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use super::NAME;
use crate::error::{Failure, Kind};
use crate::spec;

const HELP: &str = "\
lamella-oci: run containers from OCI bundles, for engines and by hand

usage: lamella-oci [global options] COMMAND [options] [arguments]

commands
  create [-b BUNDLE] [--pid-file FILE] [--console-socket SOCKET] [--preserve-fds N] [--no-new-keyring] ID
                              make a container; its program waits for start
  start ID                    run its program
  run [-d] [options of create] [--keep] ID
                              create, start, and without -d wait for the end and delete
  exec [-d] [-p FILE] [-t] [-e NAME=VALUE] [-u UID[:GID]] [--cwd DIR] [--pid-file FILE] [--console-socket SOCKET]
       [--preserve-fds N] ID [COMMAND [ARGUMENT...]]
                              run a further process in it
  state ID                    print its state
  list [-q] [-f table|json]   print all containers
  ps [-f table|json] ID       print its processes
  kill [-a] ID [SIGNAL]       send its first process (-a: every process) a signal, TERM by default
  pause ID, resume ID         stop its processes, let them go on
  update [-r FILE|-] ID       change its limits to those of a document as linux.resources
  delete [-f] ID              remove it once it has ended (-f: end it first)
  install FILE                copy this executable to .../lamella-oci, from where it starts without Python
  features                    print what this runtime can do
  spec [-b BUNDLE]            write an example of a config.json

global options
  --root DIR                  where containers are kept (/run/lamella-oci, or $XDG_RUNTIME_DIR/lamella-oci)
  --log FILE                  where messages go besides standard error
  --log-format text|json      their form
  --version, -v; --help, -h
";

/// Options for all commands.
#[derive(Clone, Debug, Default)]
pub(super) struct Global {
    /// Where containers are kept.
    pub(super) root: Option<PathBuf>,
    /// Where messages go.
    pub(super) log: Option<PathBuf>,
    /// Each as a JSON document.
    pub(super) log_json: bool,
    /// The command stands for the container's program: that it cannot be started has an exit status of its own.
    pub(super) tells_exit_code: bool,
}

/// What the whole command line says.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) global: Global,
    pub(super) command: String,
    pub(super) arguments: Arguments,
}

/// A command's options and the arguments behind them.
#[derive(Debug, Default)]
pub(super) struct Arguments {
    flags: Vec<&'static str>,
    values: BTreeMap<&'static str, Vec<String>>,
    rest: Vec<String>,
}

/// An option: its long name, its letter, and whether it has a value.
type Known = (&'static str, &'static str, bool);

const GLOBAL: &[Known] = &[
    ("root", "", true),
    ("log", "", true),
    ("log-format", "", true),
    ("debug", "", false),
    ("systemd-cgroup", "", false),
    ("rootless", "", true),
    ("version", "v", false),
    ("help", "h", false),
];
const CREATE: &[Known] = &[
    ("bundle", "b", true),
    ("pid-file", "", true),
    ("console-socket", "", true),
    ("preserve-fds", "", true),
    ("no-pivot", "", false),
    ("no-new-keyring", "", false),
    ("detach", "d", false),
    ("keep", "", false),
];
const EXEC: &[Known] = &[
    ("process", "p", true),
    ("pid-file", "", true),
    ("console-socket", "", true),
    ("preserve-fds", "", true),
    ("detach", "d", false),
    ("tty", "t", false),
    ("env", "e", true),
    ("user", "u", true),
    ("cwd", "", true),
];
const OTHERS: &[Known] = &[
    ("force", "f", false),
    ("all", "a", false),
    ("quiet", "q", false),
    ("resources", "r", true),
    ("bundle", "b", true),
];
const LISTS: &[Known] = &[("format", "f", true), ("quiet", "q", false)];

fn known(command: &str) -> &'static [Known] {
    match command {
        "create" | "run" => CREATE,
        "exec" => EXEC,
        "list" | "ps" => LISTS,
        _ => OTHERS,
    }
}

/// What a command does not have as an option.
fn belongs(command: &str, option: &str) -> bool {
    match option {
        "detach" | "keep" => command != "create",
        "force" => command == "delete",
        "all" => command == "kill",
        "quiet" => command == "list",
        "resources" => command == "update",
        "bundle" => ["create", "run", "spec"].contains(&command),
        _ => true,
    }
}

pub(super) fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Parsed, Failure> {
    let mut arguments = arguments
        .map(|argument| argument.into_string().map_err(|text| wrong(format!("{text:?} is not UTF-8"))))
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .peekable();
    let before = options("", GLOBAL, &mut arguments)?;
    let mut command = arguments.next().unwrap_or_default();
    for (flag, stands_for) in [("version", "version"), ("help", "help")] {
        if before.has(flag) {
            stands_for.clone_into(&mut command);
        }
    }
    if before.has("systemd-cgroup") {
        return Err(Failure::unsupported("--systemd-cgroup")
            .with_hint("let the engine manage cgroups by cgroupfs: podman --cgroup-manager=cgroupfs"));
    }
    let log_format = before.value("log-format").unwrap_or("text");
    if !["text", "json"].contains(&log_format) {
        return Err(wrong(format!("--log-format {log_format:?} is neither text nor json")));
    }
    let global = Global {
        root: before.value("root").map(PathBuf::from),
        log: before.value("log").filter(|path| !path.is_empty()).map(PathBuf::from),
        log_json: log_format == "json",
        tells_exit_code: ["run", "exec"].contains(&command.as_str()),
    };
    let mut own = options(&command, known(&command), &mut arguments)?;
    if own.has("help") {
        "help".clone_into(&mut command);
    }
    if own.has("no-pivot") {
        return Err(Failure::unsupported("--no-pivot"));
    }
    own.rest = arguments.collect();
    Ok(Parsed { global, command, arguments: own })
}

/// Take options, up to the first argument that is none. `--name value`, `--name=value`, `-n value`, and `-n=value`.
fn options(
    command: &str,
    known: &'static [Known],
    arguments: &mut std::iter::Peekable<impl Iterator<Item = String>>,
) -> Result<Arguments, Failure> {
    let mut taken = Arguments::default();
    while let Some(argument) = arguments.next_if(|argument| argument.len() > 1 && argument.starts_with('-')) {
        if argument == "--" {
            break;
        }
        let (name, value) = match argument.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (argument.clone(), None),
        };
        let bare = name.trim_start_matches('-');
        let found = known.iter().find(|(long, letter, _)| bare == *long || (!letter.is_empty() && bare == *letter));
        match (found, value) {
            (Some((long, _, _)), _) if !belongs(command, long) => {
                return Err(wrong(format!("{command} has no option {name}")));
            }
            (Some((long, _, true)), value) => {
                let value = value.or_else(|| arguments.next()).ok_or_else(|| wrong(format!("{name} needs a value")))?;
                taken.values.entry(long).or_default().push(value);
            }
            (Some((long, _, false)), None) => taken.flags.push(long),
            (Some((long, _, false)), Some(value)) if value == "true" => taken.flags.push(long),
            (Some((_, _, false)), Some(value)) if value == "false" => {}
            (None, None) if ["h", "help"].contains(&bare) => taken.flags.push("help"),
            _ if command.is_empty() => return Err(wrong(format!("there is no option {name}"))),
            _ => return Err(wrong(format!("{command} has no option {name}"))),
        }
    }
    Ok(taken)
}

impl Arguments {
    pub(super) fn has(&self, flag: &str) -> bool {
        self.flags.contains(&flag)
    }

    pub(super) fn value(&self, option: &str) -> Option<&str> {
        self.values.get(option).and_then(|values| values.last()).map(String::as_str)
    }

    pub(super) fn values(&self, option: &str) -> &[String] {
        self.values.get(option).map_or(&[], Vec::as_slice)
    }

    /// The container's identifier, and nothing behind it.
    pub(super) fn only_id(&self) -> Result<&str, Failure> {
        match self.id()? {
            (id, []) => Ok(id),
            (_, rest) => Err(wrong(format!("there is an argument too many: {}", rest.join(" ")))),
        }
    }

    /// The one argument of a command that is about no container.
    pub(super) fn only_argument(&self) -> Result<&str, Failure> {
        match self.rest.as_slice() {
            [argument] => Ok(argument),
            _ => Err(wrong("it takes one argument")),
        }
    }

    /// The container's identifier, and what is behind it.
    pub(super) fn id(&self) -> Result<(&str, &[String]), Failure> {
        match self.rest.split_first() {
            Some((id, rest)) => Ok((id, rest)),
            None => Err(wrong("it takes a container's identifier")),
        }
    }

    /// The arguments must be none.
    pub(super) fn nothing(&self) -> Result<(), Failure> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(wrong(format!("there is an argument too many: {}", self.rest.join(" "))))
    }

    /// Whether a list is to be a JSON document.
    pub(super) fn as_json(&self) -> Result<bool, Failure> {
        match self.value("format").unwrap_or("table") {
            "json" => Ok(true),
            "table" => Ok(false),
            format => Err(wrong(format!("--format {format:?} is neither table nor json"))),
        }
    }
}

pub(super) fn wrong(why: impl Into<String>) -> Failure {
    Failure::new(Kind::InvalidArgument, why).with_hint(format!("see {NAME} --help"))
}

pub(super) fn unknown(command: &str) -> Failure {
    wrong(format!("there is no command {command:?}"))
}

pub(super) fn help() -> Result<i32, Failure> {
    super::print(HELP.trim_end())
}

pub(super) fn version() -> Result<i32, Failure> {
    super::print(&format!("{NAME} version {}\nspec: {}", env!("CARGO_PKG_VERSION"), spec::VERSION))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Parsed, Failure> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn options_stand_before_and_behind_the_command() {
        let line = "--root=/r --log /l --log-format json create -b /b --pid-file=/p --preserve-fds 2 box";
        let Parsed { global, command, arguments } = parsed(line).expect("valid");
        assert_eq!((global.root, global.log, global.log_json), (Some("/r".into()), Some("/l".into()), true));
        assert_eq!((command.as_str(), arguments.value("bundle")), ("create", Some("/b")));
        assert_eq!((arguments.value("pid-file"), arguments.only_id().expect("given")), (Some("/p"), "box"));
        let Parsed { arguments, .. } = parsed("exec -d -e A=1 -e B=2 box sh -c true").expect("valid");
        assert_eq!((arguments.values("env").len(), arguments.has("detach")), (2, true));
        assert_eq!(arguments.id().expect("given").1, ["sh", "-c", "true"]);
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        for (line, word) in [
            ("--colour state box", "--colour"),
            ("state --force box", "--force"),
            ("create --no-pivot box", "--no-pivot"),
            ("--systemd-cgroup create box", "--systemd-cgroup"),
            ("--log-format xml state box", "xml"),
            ("create --detach box", "--detach"),
            ("create --bundle", "--bundle"),
        ] {
            let failure = parsed(line).expect_err(line);
            assert!(failure.message.contains(word), "{}", failure.message);
        }
        parsed("state").expect("valid").arguments.only_id().expect_err("no identifier");
        parsed("state a b").expect("valid").arguments.only_id().expect_err("two");
    }
}
