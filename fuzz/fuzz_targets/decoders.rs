//! A whole pipeline on any bytes: it ends, with a result or an error, and leaves no thread behind.
#![no_main]

use lamella_core::compression::Compression;
use lamella_core::cores::Cores;
use lamella_core::digest::{Algorithm, Hasher};
use lamella_core::layer::WhiteoutFormat;
use lamella_core::pipeline::{Options, Pipeline};
use lamella_core::tar::Limits;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let outer = tempfile::tempdir_in("/dev/shm").expect("a folder");
    let mut hasher = Hasher::new(Algorithm::Sha256);
    hasher.update(data);
    let pipeline = Pipeline::new(Options {
        digest: hasher.finish(),
        size: data.len() as u64,
        blob: None,
        offset: 0,
        compression: Compression::detect(data),
        layer: Some(outer.path().to_owned()),
        diff_id: None,
        whiteouts: WhiteoutFormat::Overlay,
        limits: Limits { archive: 1 << 22, entries: 1000, ..Limits::default() },
        cores: Cores::new(4),
    })
    .expect("a pipeline");
    let _ = pipeline.write(data, &mut || Ok(()));
    let _ = pipeline.finish(&mut || Ok(()));
});
