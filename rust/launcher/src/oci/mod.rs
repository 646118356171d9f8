//! `lamella-oci`: the launcher as a command that other programs run containers with, as they do with runc.
//!
//! Every call is a program of its own, and none stays behind: the container's first process is left to whoever called
//! (a shim or a conmon reaps it), with the standard streams of `create`. What there is to know of a container lies in
//! its folder of the state folder ([`container`]); how it stands is read off its first process. Operations, options and
//! the form of messages are those of runc's command line, which engines rely on.
//! <https://github.com/opencontainers/runtime-spec/blob/main/runtime.md#operations>

mod arguments;
mod container;
mod create;
mod delete;
mod exec;
mod features;
mod foreground;
mod journal;
mod running;
mod signals;
mod start;

use std::os::fd::AsFd;

use rustix::fs::SealFlags;

use crate::error::{Failure, Step};
use crate::{init, sys};
use arguments::{Arguments, Parsed};
use journal::Journal;

/// What it is called; by its name the executable knows its role.
pub const NAME: &str = "lamella-oci";

/// Do what the arguments say; the result is the exit status.
pub fn run() -> i32 {
    let parsed = arguments::parse(std::env::args_os().skip(1));
    let (global, command) = match &parsed {
        Ok(Parsed { global, command, .. }) => (global.clone(), command.clone()),
        Err(_) => Default::default(),
    };
    let mut journal = Journal::open(&global, ["create", "run", "exec"].contains(&command.as_str()));
    let done = parsed.and_then(|Parsed { global, command, arguments }| match command.as_str() {
        "create" => isolated().and_then(|()| create::create(&global, arguments, &mut journal)),
        "run" => isolated().and_then(|()| create::run(&global, arguments, &mut journal)),
        "exec" => isolated().and_then(|()| exec::exec(&global, arguments, &mut journal)),
        "start" => start::start(&global, arguments, &mut journal),
        "state" => running::state(&global, arguments),
        "list" => running::list(&global, arguments),
        "ps" => running::ps(&global, arguments),
        "kill" => running::kill(&global, arguments),
        "pause" => running::set_frozen(&global, arguments, true),
        "resume" => running::set_frozen(&global, arguments, false),
        "update" => running::update(&global, arguments, &mut journal),
        "delete" => delete::delete(&global, arguments, &mut journal),
        "install" => install(arguments),
        "features" => features::features(arguments),
        "spec" => features::example(arguments),
        "" | "help" => arguments::help(),
        "version" => arguments::version(),
        command => Err(arguments::unknown(command)),
    });
    match done {
        Ok(status) => status,
        Err(failure) => {
            journal.fail(&failure);
            failure.exit_code.filter(|_| global.tells_exit_code).unwrap_or(1)
        }
    }
}

/// Go on from a sealed copy in memory: a container's processes may reach the file that its first one runs from
/// (CVE-2019-5736).
fn isolated() -> Result<(), Failure> {
    let step = || "run from a copy in memory";
    let own = std::fs::File::open("/proc/self/exe").step(step)?;
    if rustix::fs::fcntl_get_seals(&own).is_ok_and(|seals| seals.contains(SealFlags::WRITE)) {
        return Ok(());
    }
    let copy = init::sealed_copy()?;
    let strings = |texts: Vec<std::ffi::OsString>| {
        use std::os::unix::ffi::OsStringExt;
        texts.into_iter().filter_map(|text| std::ffi::CString::new(text.into_vec()).ok()).collect::<Vec<_>>()
    };
    let environment = std::env::vars_os().map(|(mut name, value)| {
        name.push("=");
        name.push(value);
        name
    });
    let (arguments, environment) = (strings(std::env::args_os().collect()), strings(environment.collect()));
    Err(sys::execute_file(copy.as_fd(), &arguments, &environment)).step(step)
}

/// Copy this executable to a file: called from there it starts without Python.
fn install(arguments: Arguments) -> Result<i32, Failure> {
    let path = std::path::Path::new(arguments.only_argument()?);
    if path.file_name().is_none_or(|name| name != NAME) {
        return Err(arguments::wrong(format!("the file must be called {NAME}: by its name it knows what it is")));
    }
    let partial = path.with_extension("partial");
    init::write_copy(&partial)?;
    std::fs::rename(&partial, path).step(|| format!("install {}", path.display()))?;
    Ok(0)
}

/// Write a document, and a line's end, to standard output.
fn print(text: &str) -> Result<i32, Failure> {
    use std::io::Write;
    let mut output = std::io::stdout();
    output.write_all(text.as_bytes()).and_then(|()| output.write_all(b"\n")).step(|| "write to standard output")?;
    Ok(0)
}
