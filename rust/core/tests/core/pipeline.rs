//! The whole pass over a blob.

use std::io::Write;
use std::path::{Path, PathBuf};

use lamella_core::Kind;
use lamella_core::compression::Compression;
use lamella_core::cores::Cores;
use lamella_core::digest::{Algorithm, Digest, Hasher};
use lamella_core::pipeline::{Options, Pipeline, Unpacked};
use lamella_core::tar::Limits;

use crate::archive::Archive;
use crate::tree;

fn digest(bytes: &[u8]) -> Digest {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    hasher.update(bytes);
    hasher.finish()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Some megabytes of files, more than all buffers hold.
fn big_tar() -> Vec<u8> {
    let mut state = 1u32;
    let mut archive = Archive::new().folder("./").folder("d");
    for number in 0..40u32 {
        let content: Vec<u8> = (0..500_000 + number)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8 & 63
            })
            .collect();
        archive = archive.file(&format!("d/{number}"), &content);
    }
    archive.end()
}

struct Job {
    folder: tempfile::TempDir,
    options: Options,
}

fn job(blob: &[u8]) -> Job {
    let folder = tempfile::tempdir().unwrap();
    let layer = folder.path().join("layer");
    std::fs::create_dir(&layer).unwrap();
    let options = Options {
        digest: digest(blob),
        size: blob.len() as u64,
        blob: Some(folder.path().join("blob")),
        offset: 0,
        compression: Compression::Gzip,
        layer: Some(layer),
        diff_id: None,
        whiteouts: crate::format(),
        limits: Limits::default(),
        cores: Cores::new(4),
        helper: None,
    };
    Job { folder, options }
}

impl Job {
    fn blob(&self) -> PathBuf {
        self.folder.path().join("blob")
    }

    fn layer(&self) -> PathBuf {
        self.folder.path().join("layer")
    }

    fn run(&self, bytes: &[u8]) -> lamella_core::Result<Unpacked> {
        let pipeline = Pipeline::new(self.options.clone())?;
        for piece in bytes.chunks(100_000) {
            pipeline.write(piece, &mut || Ok(()))?;
        }
        pipeline.finish(&mut || Ok(()))
    }
}

#[test]
fn every_compression_gives_the_same_layer() {
    let tar = big_tar();
    let halves = [gzip(&tar[..1_000_000]), gzip(&tar[1_000_000..])].concat();
    let zstd = zstd::encode_all(&tar[..], 1).unwrap();
    let frames = [zstd::encode_all(&tar[..99], 1).unwrap(), zstd::encode_all(&tar[99..], 1).unwrap()].concat();
    for (name, blob) in
        [("gzip", gzip(&tar)), ("members", halves), ("zstd", zstd), ("frames", frames), ("none", tar.clone())]
    {
        let job = job(&blob);
        let found = job.run(&blob).unwrap();
        assert_eq!(found.diff_id, Some(digest(&tar)), "{name}");
        assert_eq!((found.tar_size, found.size), (tar.len() as u64, blob.len() as u64), "{name}");
        assert_eq!(std::fs::read(job.blob()).unwrap(), blob, "{name}");
        assert_eq!(found.layer.inodes, 42, "{name}");
        assert_eq!(tree::items(&job.layer())["d/39"].content.len(), 500_039, "{name}");
    }
}

#[test]
fn a_plain_blob_is_hashed_again_only_for_another_algorithm() {
    let tar = Archive::new().file("a", b"x").end();
    let mut job = job(&tar);
    let mut hasher = Hasher::new(Algorithm::Sha512);
    hasher.update(&tar);
    job.options.diff_id = Some(hasher.finish());
    assert_eq!(job.run(&tar).unwrap().diff_id, job.options.diff_id);
}

#[test]
fn a_blob_alone_is_written_and_checked() {
    let mut job = job(b"hello");
    job.options.layer = None;
    let found = job.run(b"hello").unwrap();
    assert_eq!((found.diff_id, found.tar_size, found.layer.inodes), (None, 0, 0));
    assert_eq!(std::fs::read(job.blob()).unwrap(), b"hello");
}

#[test]
fn an_empty_layer_is_a_layer() {
    for blob in [Vec::new(), vec![0; 1024], gzip(&[0; 1024])] {
        let job = job(&blob);
        assert_eq!(job.run(&blob).unwrap().layer.inodes, 1);
    }
}

#[test]
fn a_download_resumes_at_any_offset() {
    let tar = big_tar();
    let blob = gzip(&tar);
    for offset in [1, 255, 256 * 1024, 256 * 1024 + 1, blob.len() / 2, blob.len()] {
        let mut job = job(&blob);
        // What lies beyond the offset is not trusted.
        std::fs::write(job.blob(), [&blob[..offset], b"garbage"].concat()).unwrap();
        job.options.offset = offset as u64;
        let pipeline = Pipeline::new(job.options.clone()).unwrap();
        assert_eq!(pipeline.received(), offset as u64);
        for piece in blob[offset..].chunks(300_000) {
            pipeline.write(piece, &mut || Ok(())).unwrap();
        }
        let found = pipeline.finish(&mut || Ok(())).unwrap();
        assert_eq!(found.diff_id, Some(digest(&tar)), "offset {offset}");
        assert_eq!(pipeline.received(), blob.len() as u64);
        assert_eq!(pipeline.unpacked(), tar.len() as u64);
        assert_eq!(std::fs::read(job.blob()).unwrap(), blob, "offset {offset}");
    }
}

#[test]
fn a_partial_blob_that_is_shorter_than_its_offset_is_refused() {
    let mut job = job(b"hello");
    std::fs::write(job.blob(), b"he").unwrap();
    job.options.offset = 3;
    assert_eq!(Pipeline::new(job.options.clone()).unwrap_err().kind, Kind::FailedPrecondition);
}

#[test]
fn a_blob_of_the_store_is_read_and_not_written() {
    let blob = gzip(&big_tar());
    let mut job = job(&blob);
    let file = job.folder.path().join("stored");
    std::fs::write(&file, &blob).unwrap();
    job.options.blob = None;
    let pipeline = Pipeline::new(job.options.clone()).unwrap();
    pipeline.read_from(&file, &mut || Ok(())).unwrap();
    assert_eq!(pipeline.finish(&mut || Ok(())).unwrap().layer.inodes, 42);
    assert!(!job.blob().exists());
}

#[test]
fn wrong_size_digest_or_diff_id_is_a_failed_precondition() {
    let blob = gzip(&Archive::new().file("a", b"x").end());
    let short = job(&blob).run(&blob[..blob.len() - 1]).unwrap_err();
    assert_eq!(short.kind, Kind::FailedPrecondition);
    assert!(short.message.contains("bytes expected"), "{short}");
    let long = job(&blob).run(&[&blob[..], b"x"].concat()).unwrap_err();
    assert_eq!(long.kind, Kind::FailedPrecondition);
    let mut other = blob.clone();
    other[4] ^= 1;
    let wrong = job(&blob).run(&other).unwrap_err();
    assert_eq!(wrong.kind, Kind::FailedPrecondition);
    assert!(wrong.message.contains("digest"), "{wrong}");
    let mut job = job(&blob);
    job.options.diff_id = Some(digest(b"other"));
    let wrong = job.run(&blob).unwrap_err();
    assert_eq!(wrong.kind, Kind::FailedPrecondition);
    assert!(wrong.message.contains("image config"), "{wrong}");
}

#[test]
fn too_many_bytes_are_refused_before_they_are_taken() {
    let job = job(b"hello");
    let pipeline = Pipeline::new(job.options.clone()).unwrap();
    assert_eq!(pipeline.write(b"hello!", &mut || Ok(())).unwrap_err().kind, Kind::FailedPrecondition);
    assert_eq!(pipeline.received(), 0);
}

#[test]
fn damage_with_a_right_digest_is_data_loss() {
    let tar = big_tar();
    let cut = gzip(&tar)[..500_000].to_vec();
    assert_eq!(job(&cut).run(&cut).unwrap_err().kind, Kind::DataLoss);
    let mut zstd = zstd::encode_all(&tar[..], 1).unwrap();
    zstd.truncate(500_000);
    assert_eq!(job(&zstd).run(&zstd).unwrap_err().kind, Kind::DataLoss);
    let mut flipped = gzip(&tar);
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0xff;
    assert_eq!(job(&flipped).run(&flipped).unwrap_err().kind, Kind::DataLoss);
    let garbage = [&gzip(&tar)[..], b"garbage behind the stream"].concat();
    assert_eq!(job(&garbage).run(&garbage).unwrap_err().kind, Kind::DataLoss);
    assert_eq!(job(&tar[..700]).run(&tar[..700]).unwrap_err().kind, Kind::DataLoss);
}

#[test]
fn a_failure_of_a_stage_surfaces_while_bytes_still_come() {
    let tar = [Archive::new().file("../x", b"").0, big_tar()].concat();
    let job = job(&tar);
    let pipeline = Pipeline::new(job.options.clone()).unwrap();
    let result = tar.chunks(10_000).try_for_each(|piece| pipeline.write(piece, &mut || Ok(())));
    assert_eq!(result.unwrap_err().kind, Kind::InvalidArgument);
    assert!(pipeline.received() < tar.len() as u64);
    assert_eq!(pipeline.write(b"x", &mut || Ok(())).unwrap_err().kind, Kind::InvalidArgument);
    assert_eq!(pipeline.finish(&mut || Ok(())).unwrap_err().kind, Kind::InvalidArgument);
}

#[test]
fn caps_on_size_and_entries_hold() {
    let tar = big_tar();
    for blob in [gzip(&tar), tar.clone()] {
        let mut too_large = job(&blob);
        too_large.options.limits.archive = 1_000_000;
        assert_eq!(too_large.run(&blob).unwrap_err().kind, Kind::ResourceExhausted);
        let mut too_many = job(&blob);
        too_many.options.limits.entries = 10;
        assert_eq!(too_many.run(&blob).unwrap_err().kind, Kind::ResourceExhausted);
    }
}

fn threads() -> usize {
    let names = std::fs::read_dir("/proc/self/task").unwrap().filter_map(|task| {
        let name = std::fs::read_to_string(task.ok()?.path().join("comm")).ok()?;
        name.starts_with("lamella-").then_some(name)
    });
    names.count()
}

/// A thread names itself after it began, and is listed for a moment after it was joined.
fn threads_become(count: usize) {
    while threads() != count {
        std::thread::yield_now();
    }
}

#[test]
fn abort_and_drop_end_all_threads() {
    // In a process of its own: other tests have pipelines too.
    let program = std::env::current_exe().unwrap();
    let status = std::process::Command::new(program)
        .args(["--ignored", "--exact", "pipeline::threads_end_alone"])
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
#[ignore = "run by abort_and_drop_end_all_threads"]
fn threads_end_alone() {
    let blob = gzip(&big_tar());
    let helped = job(&blob);
    let pipeline = Pipeline::new(Options { cores: Cores::new(8), ..helped.options.clone() }).unwrap();
    pipeline.write(&blob[..blob.len() / 2], &mut || Ok(())).unwrap();
    pipeline.abort();
    threads_become(0);
    let mut job = job(&blob);
    job.options.cores = Cores::new(2);
    let pipeline = Pipeline::new(job.options.clone()).unwrap();
    pipeline.write(&blob[..blob.len() / 2], &mut || Ok(())).unwrap();
    threads_become(4);
    pipeline.abort();
    threads_become(0);
    pipeline.abort();
    assert_eq!(pipeline.write(b"x", &mut || Ok(())).unwrap_err().kind, Kind::Cancelled);
    assert_eq!(pipeline.finish(&mut || Ok(())).unwrap_err().kind, Kind::Cancelled);
    drop(pipeline);
    let job = self::job(&blob);
    let pipeline = Pipeline::new(job.options.clone()).unwrap();
    pipeline.write(&blob[..1000], &mut || Ok(())).unwrap();
    drop(pipeline);
    threads_become(0);
    let job = self::job(&blob);
    let pipeline = Pipeline::new(job.options.clone()).unwrap();
    for _ in 0..2 {
        // An error ends them too, and stays.
        let error = pipeline.write(&vec![0; blob.len() + 1], &mut || Ok(())).unwrap_err();
        assert_eq!(error.kind, Kind::FailedPrecondition);
        threads_become(0);
    }
    threads_become(0);
}

#[test]
fn the_caller_is_asked_whether_to_go_on() {
    let tar = big_tar();
    let mut job = job(&tar);
    job.options.layer = None;
    job.options.blob = None;
    let pipeline = Pipeline::new(job.options.clone()).unwrap();
    let mut calls = 0;
    let mut stop = || {
        calls += 1;
        if calls > 3 { Err(lamella_core::Error::cancelled()) } else { Ok(()) }
    };
    assert_eq!(pipeline.write(&tar, &mut stop).unwrap_err().kind, Kind::Cancelled);
    assert!(pipeline.received() < tar.len() as u64);
}

#[test]
fn abort_from_another_thread_ends_a_write() {
    let tar = big_tar();
    let job = job(&tar);
    let pipeline = Pipeline::new(job.options.clone()).unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            loop {
                for piece in tar[..1_000_000].chunks(1000) {
                    pipeline.write(piece, &mut || Ok(()))?;
                }
            }
            #[allow(unreachable_code)]
            Ok::<(), lamella_core::Error>(())
        });
        std::thread::sleep(std::time::Duration::from_millis(5));
        pipeline.abort();
        assert!(writer.join().unwrap().is_err());
    });
}

#[test]
fn finish_works_once() {
    let job = job(b"");
    let pipeline = Pipeline::new(job.options.clone()).unwrap();
    pipeline.finish(&mut || Ok(())).unwrap();
    assert_eq!(pipeline.finish(&mut || Ok(())).unwrap_err().kind, Kind::FailedPrecondition);
    pipeline.abort();
}

#[test]
fn errors_name_the_file_that_could_not_be_written() {
    let mut job = job(b"x");
    job.options.blob = Some(Path::new("/nonexistent/blob").to_owned());
    let error = Pipeline::new(job.options.clone()).unwrap_err();
    assert_eq!(error.kind, Kind::NotFound);
    assert!(error.message.contains("/nonexistent/blob"));
}
