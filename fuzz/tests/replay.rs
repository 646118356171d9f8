//! A short run of every target with the stable toolchain: its corpus, then mutations of that, chosen at random.
//!
//! `LAMELLA_SEED=N` repeats the choice. An input that fails is kept in `artifacts/<target>/`; in `corpus/<target>/` it is tried
//! first from then on.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;

use lamella_fuzz::{TARGETS, Target};

/// As in the fuzzing for hours (Makefile).
const LONGEST: usize = 1 << 14;

/// xorshift64*: repeatable, which is all that is asked of it.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() >> 32).unwrap() % end.max(1)
    }

    /// A stretch of something `length` long; mostly a short one.
    fn stretch(&mut self, length: usize) -> std::ops::Range<usize> {
        let from = self.below(length + 1);
        let most = if self.below(4) == 0 { 1024 } else { 8 };
        from..(from + 1 + self.below(most)).min(length).max(from)
    }
}

/// Change an input as libFuzzer does: bytes, stretches of it, stretches of another one.
fn mutate(random: &mut Random, input: &mut Vec<u8>, others: &[Vec<u8>]) {
    const BYTES: [u8; 8] = [0, 1, b'\n', b'/', b'.', b'7', 0x7f, 0xff];
    for _ in 0..=random.below(5) {
        let at = random.below(input.len());
        let stretch = random.stretch(input.len());
        match random.below(7) {
            0 if !input.is_empty() => input[at] ^= 1 << random.below(8),
            1 if !input.is_empty() => input[at] = BYTES[random.below(BYTES.len())],
            2 if !input.is_empty() => input[at] = u8::try_from(random.below(256)).unwrap(),
            3 => drop(input.drain(stretch)),
            4 => {
                let copy = input[stretch].to_vec();
                drop(input.splice(at..at, copy));
            }
            _ => {
                let Some(other) = others.get(random.below(others.len())) else { continue };
                let copy = other[random.stretch(other.len())].to_vec();
                let to = if random.below(2) == 0 { at } else { (at + copy.len()).min(input.len()) };
                drop(input.splice(at..to, copy));
            }
        }
    }
    input.truncate(LONGEST);
}

fn folder(kind: &str, target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(kind).join(target.name)
}

/// The inputs that are kept, in the order of their names: the choice must not depend on the disk's.
fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder("corpus", target)).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

fn try_one(target: &Target, input: &[u8], what: &str) {
    let Err(panic) = catch_unwind(AssertUnwindSafe(|| (target.run)(input))) else { return };
    let folder = folder("artifacts", target);
    fs::create_dir_all(&folder).unwrap();
    let kept = folder.join(what);
    fs::write(&kept, input).unwrap();
    eprintln!("{}: {what} failed; it is kept in {}", target.name, kept.display());
    resume_unwind(panic);
}

/// Have folders made in memory, where that holds extended attributes (Linux 6.6): most of the time goes into inodes.
fn work_in_memory() {
    let memory = Path::new("/dev/shm");
    let holds = |file: &tempfile::NamedTempFile| {
        rustix::fs::setxattr(file.path(), "user.test", b"", rustix::fs::XattrFlags::empty()).is_ok()
    };
    if tempfile::NamedTempFile::new_in(memory).is_ok_and(|file| holds(&file)) {
        let _ = tempfile::env::override_temp_dir(memory); // an error where it is set already
    }
}

/// Run a test again as root of a user namespace, for who is not root: what the targets make is unreadable for its owner, at times.
fn is_run_as_root(name: &str) -> bool {
    if rustix::process::geteuid().is_root() {
        return false;
    }
    let as_root = |program: &Path, arguments: &[&str]| {
        Command::new("unshare").args(["--map-root-user", "--"]).arg(program).args(arguments).output()
    };
    if !as_root(Path::new("true"), &[]).is_ok_and(|done| done.status.success()) {
        eprintln!("skipped: it takes root, or util-linux's unshare and user namespaces");
        return true;
    }
    let done = as_root(&std::env::current_exe().unwrap(), &["--exact", name]).unwrap();
    let told = [&done.stdout, &done.stderr].map(|told| String::from_utf8_lossy(told).into_owned()).concat();
    assert!(done.status.success(), "{told}");
    true
}

fn short_run(name: &str) {
    work_in_memory();
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let corpus = corpus(target);
    assert!(!corpus.is_empty(), "a target has a corpus");
    for (number, input) in corpus.iter().enumerate() {
        try_one(target, input, &format!("corpus-{number}"));
    }
    let seed = std::env::var("LAMELLA_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), name) >> 1);
    eprintln!("{name}: LAMELLA_SEED={seed}");
    let mut random = Random(seed.wrapping_mul(2) | 1);
    for number in 0..target.executions {
        let mut input = corpus[random.below(corpus.len())].clone();
        mutate(&mut random, &mut input, &corpus);
        try_one(target, &input, &format!("seed-{seed}-{number}"));
    }
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                if !is_run_as_root(stringify!($name)) {
                    short_run(stringify!($name));
                }
            }
        )*

        #[test]
        fn every_target_is_run_by_each_of_the_two() {
            let names = [$(stringify!($name)),*];
            assert_eq!(names, TARGETS.map(|target| target.name));
            for name in names {
                let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz_targets").join(name).with_extension("rs");
                assert!(fs::read_to_string(program).unwrap().contains(&format!("lamella_fuzz::{name}::run")));
            }
        }
    };
}

targets! { applier decoders diff documents files inflate mounts pax sparse tar_reader unpack whiteouts }
