//! A tar through the reader and the applier, in each format of whiteouts: nothing outside of the layer folder changes.

use lamella_core::Kind;
use lamella_core::layer::{Applier, WhiteoutFormat, unpack};
use lamella_core::tar::{Limits, Reader};

use crate::ground::{check, is_misleading, watch};
use crate::tar_reader::sealed;

pub fn run(data: &[u8]) {
    if is_misleading(data) {
        return;
    }
    let archive = sealed(data);
    watch(|ground| {
        let formats = [WhiteoutFormat::Overlay, WhiteoutFormat::OverlayUserXattr, WhiteoutFormat::Plain];
        for (number, format) in formats.into_iter().enumerate() {
            let layer = ground.layer(number);
            let limits = Limits { archive: 1 << 20, entries: 1000, ..Limits::default() };
            let applied = Applier::new(&layer, format).and_then(|mut applier| {
                unpack(&mut Reader::new(&archive[..], limits), &mut applier)?;
                applier.finish(&mut || Ok(()))
            });
            match applied {
                Ok(applied) => check(&layer, &applied),
                Err(error) => assert_ne!(error.kind, Kind::Internal, "{error}"),
            }
        }
    });
}
