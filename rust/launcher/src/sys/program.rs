//! Handing programs to the kernel: seccomp filters and the device filter of cgroup v2.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::checked;

/// One instruction of a seccomp filter (classic BPF).
pub type SeccompInstruction = libc::sock_filter;

/// Install a seccomp filter for this process. Needs no_new_privs or CAP_SYS_ADMIN.
///
/// A kernel that does not know `SPEC_ALLOW` (Linux before 4.17, gVisor) has no mitigation that it would leave out.
pub fn install_seccomp(program: &[SeccompInstruction], flags: u64) -> io::Result<()> {
    let length = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
    let header = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    let install = |flags: u64| {
        // SAFETY: the header points at `len` instructions, which the kernel only reads.
        checked(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const header) })
    };
    let without = flags & !libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    match install(flags) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) && flags != without => install(without)?,
        result => result?,
    };
    Ok(())
}

/// The part of `union bpf_attr` that BPF_PROG_LOAD needs.
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
}

/// The part of `union bpf_attr` that BPF_PROG_ATTACH needs.
#[repr(C)]
#[derive(Default)]
struct AttachAttributes {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

/// Load a program of eBPF instructions (each as the 64-bit word the kernel takes) as a cgroup's device filter and
/// attach it to a cgroup folder.
pub fn attach_device_program(cgroup: BorrowedFd<'_>, instructions: &[u64]) -> io::Result<()> {
    const BPF_PROG_LOAD: libc::c_int = 5;
    const BPF_PROG_ATTACH: libc::c_int = 8;
    const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
    const BPF_CGROUP_DEVICE: u32 = 6;
    const BPF_F_ALLOW_MULTI: u32 = 2;
    let load = LoadAttributes {
        program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..LoadAttributes::default()
    };
    // SAFETY: the attributes have the size that is passed along and point at live memory of the lengths that they state, at a
    // text that ends with a NUL, and at no log; the kernel only reads all that.
    let descriptor =
        checked(unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<LoadAttributes>()) })?;
    // SAFETY: the call just made this descriptor, and nobody else knows it.
    let program = unsafe { OwnedFd::from_raw_fd(descriptor as i32) };
    let attach = AttachAttributes {
        target: cgroup.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: the attributes have the size that is passed along and hold integers only.
    checked(unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attach, size_of::<AttachAttributes>())
    })?;
    Ok(())
}
