//! What more cores would bring: the CPU time of each stage alone, and the pull times that follow from it.
//!
//! ```text
//! cargo run --release -p lamella-core --example cores -- LAYER.tar.gz...
//! ```
//! The model: layers run at once, each as fast as its slowest stage lets it, or as its part of the cores does; a stage is one
//! thread, but for inflating. Applying is what unpacking a layer takes beyond the other stages: alone, from memory that is in no
//! cache, it takes three times as long. To see how far the model can be trusted, the layers are unpacked here, and the wall time
//! stands beside what it says for as many cores (`taskset -c 0` gives one).

#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use lamella_core::compression::{Compression, Decoder};
use lamella_core::cores::Cores;
use lamella_core::digest::{Algorithm, Digest, Hasher};
use lamella_core::inflate::Gzip;
use lamella_core::layer::WhiteoutFormat;
use lamella_core::pipeline::{Options, Pipeline};
use lamella_core::tar::Limits;
use rustix::time::{ClockId, clock_gettime};

const TIMES: usize = 3;
const MACHINES: [usize; 5] = [1, 2, 4, 8, 16];

/// CPU seconds of a layer's stages.
#[derive(Clone, Copy, Debug)]
struct Stages {
    store: f64,
    hash: f64,
    apply: f64,
    /// By zlib-rs; by this crate with no helper; with two.
    inflate: [f64; 3],
}

impl Stages {
    /// CPU seconds of all stages, and seconds of the slowest, where so many threads may help to inflate.
    fn with(&self, cores: usize, helpers: usize) -> (f64, f64) {
        let inflate = self.inflate[if cores <= 2 { 0 } else { 1 + helpers.min(1) }];
        let slowest = self.store.max(self.hash).max(self.apply).max(inflate / (1 + helpers) as f64);
        (self.store + self.hash + self.apply + inflate, slowest)
    }
}

/// How long it takes to unpack `layers` at once.
fn modelled(layers: &[Stages], cores: usize, helped: bool) -> f64 {
    let mut left: Vec<(f64, Stages)> = layers.iter().map(|layer| (1.0, *layer)).collect();
    let shared = Cores::new(cores);
    let mut seconds = 0.0;
    while !left.is_empty() {
        let sharing: Vec<_> = left.iter().map(|_| shared.begin()).collect();
        let helpers = if helped { sharing[0].helpers() } else { 0 };
        let with = |layer: &Stages| layer.with(if helped { cores } else { 2 }, helpers);
        let wanted: f64 = left.iter().map(|(_, layer)| with(layer).0 / with(layer).1).sum();
        let pace = (cores as f64 / wanted).min(1.0);
        let step = left.iter().map(|(part, layer)| part * with(layer).1 / pace).fold(f64::MAX, f64::min);
        for (part, layer) in &mut left {
            *part -= step * pace / with(layer).1;
        }
        left.retain(|(part, _)| *part > 1e-9);
        seconds += step;
    }
    seconds
}

/// CPU time of all threads so far.
fn spent() -> f64 {
    let spent = clock_gettime(ClockId::ProcessCPUTime);
    spent.tv_sec as f64 + spent.tv_nsec as f64 / 1e9
}

/// The least CPU time of all threads that some tries took.
fn cpu(mut work: impl FnMut()) -> f64 {
    let one = || {
        let began = spent();
        work();
        (0.0, spent() - began)
    };
    least(one).1
}

fn drain(mut reader: impl Read) {
    let mut buffer = vec![0; 256 << 10];
    while reader.read(&mut buffer).unwrap() > 0 {}
}

fn digest(bytes: &[u8]) -> Digest {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    hasher.update(bytes);
    hasher.finish()
}

fn measure(blob: &Vec<u8>, folder: &Path) -> (Stages, u64) {
    let mut tar = Vec::new();
    Decoder::new(Compression::Gzip, &blob[..]).unwrap().read_to_end(&mut tar).unwrap();
    let helped = |cores| cpu(|| drain(Gzip::new(&blob[..], Cores::new(cores).begin())));
    let store = cpu(|| {
        let mut file = tempfile::tempfile_in(folder).unwrap();
        blob.chunks(256 << 10).for_each(|chunk| file.write_all(chunk).unwrap());
        digest(blob);
    });
    let hash = cpu(|| drop(digest(&tar)));
    let inflate = [cpu(|| drain(Decoder::new(Compression::Gzip, &blob[..]).unwrap())), helped(1), helped(4)];
    let (_, all) = least(|| unpacked(std::slice::from_ref(blob), folder, &Cores::new(1)));
    let apply = (all - store - hash - inflate[0]).max(0.0);
    (Stages { store, hash, apply, inflate }, tar.len() as u64)
}

/// The least wall time, and the least CPU time, that some tries took.
fn least(mut work: impl FnMut() -> (f64, f64)) -> (f64, f64) {
    (0..TIMES).map(|_| work()).fold((f64::MAX, f64::MAX), |least, cost| (least.0.min(cost.0), least.1.min(cost.1)))
}

/// Unpack layers at once; the wall time, and the CPU time.
fn unpacked(blobs: &[Vec<u8>], folder: &Path, cores: &Arc<Cores>) -> (f64, f64) {
    let all = tempfile::tempdir_in(folder).unwrap();
    let jobs: Vec<(&[u8], Options)> = blobs
        .iter()
        .map(|blob| {
            let layer = tempfile::tempdir_in(all.path()).unwrap().keep();
            let options = Options {
                digest: digest(blob),
                size: blob.len() as u64,
                blob: Some(layer.with_extension("blob")),
                offset: 0,
                compression: Compression::Gzip,
                layer: Some(layer),
                diff_id: None,
                whiteouts: WhiteoutFormat::Overlay,
                limits: Limits::default(),
                cores: Arc::clone(cores),
                helper: None,
            };
            (&blob[..], options)
        })
        .collect();
    let (began, already) = (Instant::now(), spent());
    thread::scope(|scope| {
        for (blob, options) in jobs {
            scope.spawn(move || {
                let pipeline = Pipeline::new(options).unwrap();
                blob.chunks(1 << 20).for_each(|piece| pipeline.write(piece, &mut || Ok(())).unwrap());
                pipeline.finish(&mut || Ok(())).unwrap();
            });
        }
    });
    (began.elapsed().as_secs_f64(), spent() - already)
}

fn main() -> io::Result<()> {
    let blobs = std::env::args_os().skip(1).map(std::fs::read).collect::<io::Result<Vec<_>>>()?;
    if blobs.is_empty() {
        println!("usage: cores LAYER.tar.gz...");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let mut layers = Vec::new();
    println!("CPU seconds of each layer   store    hash   apply  inflate: zlib-rs  alone  helped");
    for blob in &blobs {
        let (stages, size) = measure(blob, folder.path());
        let [by_library, alone, helped] = stages.inflate;
        println!(
            "{:5} MB from {:5} MB    {:9.3} {:7.3} {:7.3} {:17.3} {:6.3} {:7.3}",
            size / 1_000_000,
            blob.len() / 1_000_000,
            stages.store,
            stages.hash,
            stages.apply,
            by_library,
            alone,
            helped
        );
        layers.push(stages);
    }
    let largest = (0..layers.len()).max_by_key(|&layer| blobs[layer].len()).unwrap_or_default();
    println!("\nseconds, computed         {}", MACHINES.map(|cores| format!("{cores:>4} cores")).join(" "));
    for (name, layers) in [("largest", &layers[largest..=largest]), ("all", &layers[..])] {
        for (how, helped) in [("one inflates", false), ("helped", true)] {
            let seconds = MACHINES.map(|cores| format!("{:10.2}", modelled(layers, cores, helped))).join("");
            println!("{:25}{seconds}", format!("{name}, {how}"));
        }
    }
    let cores = thread::available_parallelism()?.get();
    println!("\nseconds on the cores here: {cores}");
    for (name, blobs, layers) in
        [("largest", &blobs[largest..=largest], &layers[largest..=largest]), ("all", &blobs[..], &layers[..])]
    {
        let (wall, cpu) = least(|| unpacked(blobs, folder.path(), &Cores::of_this_process()));
        let (here, one) = (modelled(layers, cores, true), modelled(layers, 1, true));
        println!("{name}: {wall:.2}, computed {here:.2}; CPU {cpu:.2}, computed {one:.2}");
    }
    Ok(())
}
