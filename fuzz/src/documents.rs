//! What the launcher is told, as JSON: a request and a spec. It is refused, or all that is made of it holds what its check
//! promised. No document makes an error that a terminal would obey.

use lamella_launcher::error::Failure;
use lamella_launcher::process::Plan;
use lamella_launcher::process::seccomp::compile;
use lamella_launcher::request::Request;
use lamella_launcher::rootfs::RootfsPlan;
use lamella_launcher::spec::Spec;

pub fn run(data: &[u8]) {
    let Ok(document) = std::str::from_utf8(data) else { return };
    match Request::parse(document) {
        Ok(request) => {
            assert!(request.bundle.starts_with('/'));
            assert!(request.log.is_none_or(|log| log.path.starts_with('/')));
        }
        Err(failure) => check(&failure),
    }
    let spec = match Spec::parse(document) {
        Ok(spec) => spec,
        Err(failure) => return check(&failure),
    };
    assert!(spec.process.cwd.starts_with('/') && spec.process.args.first().is_some_and(|program| !program.is_empty()));
    assert!(spec.process.user.uid != u32::MAX && spec.process.user.gid != u32::MAX);
    assert!(spec.mounts.iter().all(|mount| mount.destination.starts_with('/')));
    if let Err(failure) = RootfsPlan::new("/bundle", Vec::new(), Vec::new(), &spec) {
        check(&failure);
    }
    let filter = match spec.linux.seccomp.as_ref().map(compile).transpose() {
        Ok(filter) => filter,
        Err(failure) => return check(&failure),
    };
    if let Err(failure) = Plan::new(&spec.process, filter, spec.linux.personality.as_ref()) {
        check(&failure);
        assert!(!failure.message.contains("NUL"), "the spec's check let a NUL through");
    }
}

fn check(failure: &Failure) {
    assert!(!failure.message.chars().any(|character| character == '\x1b'), "{:?}", failure.message);
}
