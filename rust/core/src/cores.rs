//! Shares this machine's cores among the layers that are being unpacked, so that the last large one gets those that the
//! others have left.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::{process, thread};

/// What a layer keeps busy by itself: one core inflates, 1.2 write, hash and apply what that gives.
const A_LAYER: usize = 2;
/// Helpers of all layers together: what they have in work is some 4 MB for each, and what applies it is slower than more.
const MOST_HELPERS: usize = 8;

/// Cores, and how many layers share them.
#[derive(Debug)]
pub struct Cores {
    count: usize,
    /// Their number, below that of the process: after a fork the layers are not here.
    layers: AtomicU64,
}

impl Cores {
    /// So many.
    #[must_use]
    pub fn new(count: usize) -> Arc<Self> {
        Arc::new(Self { count, layers: AtomicU64::new(0) })
    }

    /// Those that this process may run on.
    #[must_use]
    pub fn of_this_process() -> Arc<Self> {
        static CORES: OnceLock<Arc<Cores>> = OnceLock::new();
        Arc::clone(CORES.get_or_init(|| Self::new(thread::available_parallelism().map_or(1, usize::from))))
    }

    /// Count a layer, until what is given back is dropped.
    #[must_use]
    pub fn begin(self: &Arc<Self>) -> Arc<Layer> {
        self.change(|layers| layers + 1);
        Arc::new(Layer(Arc::clone(self)))
    }

    fn change(&self, change: impl Fn(u32) -> u32) {
        let process = u64::from(process::id()) << 32;
        let changed = |packed: u64| {
            let layers = if packed >> 32 == process >> 32 { packed as u32 } else { 0 };
            Some(process | u64::from(change(layers)))
        };
        let _ = self.layers.fetch_update(Ordering::Relaxed, Ordering::Relaxed, changed); // it always says Some
    }
}

/// A layer that is being unpacked.
#[derive(Debug)]
pub struct Layer(Arc<Cores>);

impl Layer {
    /// Whether there may ever be a core for a helper.
    #[must_use]
    pub fn can_be_helped(&self) -> bool {
        self.0.count > A_LAYER
    }

    /// How many cores it may use besides those that it keeps busy by itself. That changes as layers begin and end.
    #[must_use]
    pub fn helpers(&self) -> usize {
        let layers = (self.0.layers.load(Ordering::Relaxed) as u32).max(1) as usize;
        (self.0.count / layers).saturating_sub(A_LAYER).min(MOST_HELPERS / layers)
    }
}

impl Drop for Layer {
    fn drop(&mut self) {
        self.0.change(|layers| layers.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_share_what_they_leave() {
        let cores = Cores::new(8);
        let first = cores.begin();
        assert_eq!(first.helpers(), 6);
        let second = cores.begin();
        assert_eq!((first.helpers(), second.helpers()), (2, 2));
        let third = cores.begin();
        assert_eq!(third.helpers(), 0);
        drop((first, third));
        assert_eq!(second.helpers(), 6);
    }

    #[test]
    fn helpers_are_few_on_large_machines_too() {
        let cores = Cores::new(64);
        let layers: Vec<_> = (0..5).map(|_| cores.begin()).collect();
        assert_eq!(layers[0].helpers(), 1);
        drop(layers);
        assert_eq!(cores.begin().helpers(), 8);
    }

    #[test]
    fn two_cores_have_enough_to_do() {
        for (count, helpers) in [(1, 0), (2, 0), (3, 1)] {
            let layer = Cores::new(count).begin();
            assert_eq!((layer.can_be_helped(), layer.helpers()), (helpers > 0, helpers));
        }
    }

    #[test]
    fn layers_of_the_process_before_a_fork_are_not_counted() {
        let cores = Cores::new(4);
        cores.layers.store(u64::from(process::id() + 1) << 32 | 3, Ordering::Relaxed);
        assert_eq!(cores.begin().helpers(), 2);
    }
}
