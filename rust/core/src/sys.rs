//! The only module with unsafe code: system calls that rustix does not wrap, behind safe functions.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use rustix::fs::{FallocateFlags, MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::mount::MountAttrFlags;
use rustix::thread::UnshareFlags;

/// What `mount_setattr` is to change (mount_setattr(2)).
#[derive(Clone, Copy, Debug)]
pub struct MountAttributes<'a> {
    /// Attributes to set.
    pub set: MountAttrFlags,
    /// Attributes to clear.
    pub clear: MountAttrFlags,
    /// One of `libc::MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`, `MS_UNBINDABLE`, or 0.
    pub propagation: u64,
    /// Also for what is mounted beneath.
    pub recursive: bool,
    /// A user namespace whose maps of ids the mount takes over.
    pub id_map: Option<BorrowedFd<'a>>,
}

impl Default for MountAttributes<'_> {
    fn default() -> Self {
        let none = MountAttrFlags::empty();
        Self { set: none, clear: none, propagation: 0, recursive: false, id_map: None }
    }
}

/// Change the attributes of the mount that `mount` is the root of. [`crate::mount::change`] does it on any kernel.
pub fn mount_setattr(mount: BorrowedFd<'_>, attributes: MountAttributes<'_>) -> Result<(), Errno> {
    #[repr(C)]
    struct Argument {
        set: u64,
        clear: u64,
        propagation: u64,
        userns_fd: u64,
    }
    let mut set = attributes.set;
    set.set(MountAttrFlags::MOUNT_ATTR_IDMAP, attributes.id_map.is_some());
    let argument = Argument {
        set: u64::from(set.bits()),
        clear: u64::from(attributes.clear.bits()),
        propagation: attributes.propagation,
        userns_fd: attributes.id_map.map_or(0, |namespace| u64::from(namespace.as_raw_fd().unsigned_abs())),
    };
    let flags = libc::AT_EMPTY_PATH | if attributes.recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated constant and the argument is the struct of that size which the call reads.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            ptr::from_ref(&argument),
            size_of::<Argument>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

/// Whether the kernel has `mount_setattr` (Linux 5.12).
#[must_use]
pub fn has_mount_setattr() -> bool {
    // SAFETY: a length of 0, with which nothing is read; the kernel refuses it.
    unsafe { libc::syscall(libc::SYS_mount_setattr, -1, c"".as_ptr(), 0, ptr::null::<u8>(), 0) };
    last_errno() != Errno::NOSYS
}

/// Give the calling thread a umask of its own, zero, so that files get exactly the mode they are made with.
///
/// The process's other threads keep theirs. False when the kernel refuses (a seccomp filter may).
#[must_use]
pub fn own_zero_umask() -> bool {
    // SAFETY: with FS alone this splits the thread's umask, root and working folder from the process's. No descriptor
    // or memory is concerned, which is what makes other flags unsafe.
    if unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }.is_err() {
        return false;
    }
    rustix::process::umask(Mode::empty());
    true
}

/// Let the calling thread have a mount namespace and a working folder of its own.
pub fn own_mount_namespace() -> Result<(), Errno> {
    // SAFETY: as in `own_zero_umask`; with NEWNS what paths of this thread lead to can change, and no other thread's.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS | UnshareFlags::NEWNS) }
}

/// Let the calling thread have a network namespace of its own.
pub fn own_network_namespace() -> Result<(), Errno> {
    // SAFETY: NEWNET concerns sockets that this thread will make, and no descriptor or memory that exists.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
}

/// Set the loopback device of the present network namespace up. A kernel that cannot set flags (gVisor) has it up already.
pub fn bring_loopback_up() -> Result<(), Errno> {
    let up = libc::IFF_UP | libc::IFF_RUNNING;
    // Any socket of the namespace will do. One of the Internet family costs 60 microseconds more to close.
    match loopback_flags(libc::AF_UNIX, libc::SIOCSIFFLAGS, up) {
        Err(Errno::NOTTY) if loopback_flags(libc::AF_INET, libc::SIOCGIFFLAGS, 0)? & up == up => Ok(()),
        result => result.map(drop),
    }
}

/// Ask a socket of this family to set or to get the loopback device's flags; give those of the answer.
fn loopback_flags(family: libc::c_int, request: libc::c_ulong, flags: libc::c_int) -> Result<libc::c_int, Errno> {
    // SAFETY: integers only.
    let descriptor = unsafe { libc::socket(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if descriptor < 0 {
        return Err(last_errno());
    }
    // SAFETY: the call just made this descriptor, and nobody else knows it.
    let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
    // SAFETY: an ifreq of zeros is valid: a name of NUL bytes and an integer for the rest.
    let mut device: libc::ifreq = unsafe { std::mem::zeroed() };
    for (target, byte) in device.ifr_name.iter_mut().zip(b"lo") {
        *target = *byte as libc::c_char;
    }
    device.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: both requests read and write no more than an ifreq, which lives until the call returns.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), request as _, &raw mut device) };
    if result < 0 {
        return Err(last_errno());
    }
    // SAFETY: the flags were set above, and both requests leave flags there.
    let flags = unsafe { device.ifr_ifru.ifru_flags };
    Ok(flags.into())
}

/// A user namespace, and the process that keeps it until a descriptor does: it sleeps, and ends with this value.
///
/// unshare(2) makes none for a process with several threads. So a child is cloned that shares the memory, as a child of
/// vfork(2) does, which costs the same however large this process is, and makes three system calls on a stack of its own.
#[derive(Debug)]
pub struct UserNamespace {
    child: OwnedFd,
    /// The child runs on it.
    _stack: Vec<u128>,
}

impl UserNamespace {
    /// Make one without maps of ids; with `network` it has a network namespace of its own.
    pub fn new(network: bool) -> Result<Self, Errno> {
        const STACK: usize = 16 << 10;
        let mut stack = vec![0u128; STACK / size_of::<u128>()];
        let network = if network { libc::CLONE_NEWNET } else { 0 };
        let flags = libc::CLONE_NEWUSER | network | libc::CLONE_VM | libc::CLONE_PIDFD;
        let parent = ptr::without_provenance_mut(std::process::id() as usize); // told by value: the child may outlive this call
        let mut child: RawFd = -1;
        let pid = {
            // A handler of this process that ran in the child would work on this process's memory.
            let _blocked = BlockedSignals::new()?;
            let top = stack.as_mut_ptr_range().end.cast();
            // SAFETY: the child runs `sleep_until_killed` on `stack`, which lives until the child is gone (see drop) and is
            // used by nobody else. That function touches no other memory, no lock and no thread-local value, and does not
            // return. The last argument is where the call stores a descriptor.
            unsafe { libc::clone(sleep_until_killed, top, flags, parent, &raw mut child) }
        };
        if pid < 0 {
            return Err(last_errno());
        }
        // SAFETY: the call just made this descriptor, and nobody else knows it.
        Ok(Self { child: unsafe { OwnedFd::from_raw_fd(child) }, _stack: stack })
    }

    /// The folder of the process that keeps it, in /proc.
    pub fn process(&self) -> Result<OwnedFd, Errno> {
        // The number is the one that /proc knows it by: this process may see others than its /proc does.
        let path = format!("/proc/self/fdinfo/{}", self.child.as_raw_fd());
        let text = std::fs::read_to_string(path).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        let number = text.lines().find_map(|line| line.strip_prefix("Pid:")).ok_or(Errno::SRCH)?.trim();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(format!("/proc/{number}"), flags, Mode::empty())
    }
}

impl Drop for UserNamespace {
    fn drop(&mut self) {
        let _ = rustix::process::pidfd_send_signal(&self.child, rustix::process::Signal::KILL);
        let mut info = MaybeUninit::<libc::siginfo_t>::uninit();
        loop {
            // SAFETY: `info` is where the call may write what became of the child.
            let result = unsafe {
                let number = self.child.as_raw_fd().unsigned_abs();
                libc::waitid(libc::P_PIDFD, number, info.as_mut_ptr(), libc::WEXITED | libc::__WALL)
            };
            // Nobody else waits for it (it has no signal to tell its end with), so that only an interruption is left.
            if result == 0 || last_errno() != Errno::INTR {
                break;
            }
        }
    }
}

/// What the child of a [`UserNamespace`] does. System calls that succeed leave `errno` alone, which is its parent's.
extern "C" fn sleep_until_killed(parent: *mut libc::c_void) -> libc::c_int {
    let limit = libc::timespec { tv_sec: 60, tv_nsec: 0 };
    let none = ptr::null_mut::<libc::c_void>();
    // SAFETY: numbers only.
    unsafe { libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) };
    // SAFETY: no arguments.
    let now = unsafe { libc::syscall(libc::SYS_getppid) };
    // A parent that died before the first call is another one now; one outside of the child's PID namespace is always 0, and the
    // child ends with the time then.
    if now == 0 || now == parent.addr() as libc::c_long {
        // SAFETY: numbers, null pointers, and a time that the call only reads and that lives until it returns.
        unsafe { libc::syscall(libc::SYS_ppoll, none, 0, &raw const limit, none, 0) };
    }
    // SAFETY: a number only. It ends this process alone, which is no thread of its parent.
    unsafe { libc::syscall(libc::SYS_exit_group, 0) };
    0
}

/// All signals are blocked in this thread as long as it lives.
struct BlockedSignals(libc::sigset_t);

impl BlockedSignals {
    fn new() -> Result<Self, Errno> {
        let mut all = MaybeUninit::uninit();
        let mut before = MaybeUninit::uninit();
        // SAFETY: the call makes a valid set of the memory, without reading it.
        unsafe { libc::sigfillset(all.as_mut_ptr()) };
        // SAFETY: the call reads the set that was just initialised, and makes a valid one of the other memory.
        check(unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) })?;
        // SAFETY: just initialised.
        Ok(Self(unsafe { before.assume_init() }))
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: the set is initialised.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, ptr::null_mut()) };
    }
}

/// Let the calling thread make files as another user and group of the initial user namespace, with the privileges it has.
pub fn make_files_as(user: u32, group: u32) -> Result<(), Errno> {
    // SAFETY: a number only; the call changes the thread's credentials, no memory.
    let set_group = |group| unsafe { libc::setfsgid(group) };
    // SAFETY: likewise.
    let set_user = |user| unsafe { libc::setfsuid(user) };
    set_group(group);
    set_user(user);
    // They return the former id, no error; asked for an id that is none they change nothing.
    let (now_user, now_group) = (set_user(u32::MAX), set_group(u32::MAX));
    if (now_user.cast_unsigned(), now_group.cast_unsigned()) != (user, group) {
        return Err(Errno::PERM);
    }
    // Leaving user 0 takes the file privileges out of the effective set (capabilities(7)).
    let mut sets = rustix::thread::capabilities(None)?;
    sets.effective = sets.permitted;
    rustix::thread::set_capabilities(None, sets)
}

/// The name of this process's effective user, as the machine's directory of users has it.
#[cfg(feature = "unpack")] // the directory takes shared libraries, which the launcher does without
#[must_use]
pub fn user_name() -> Option<String> {
    let mut entry = MaybeUninit::<libc::passwd>::uninit();
    let mut found: *mut libc::passwd = ptr::null_mut();
    let mut buffer = vec![0; 64 << 10];
    // SAFETY: a system call without arguments that cannot fail.
    let user = unsafe { libc::geteuid() };
    // SAFETY: all pointers are of live memory that the call may write, the buffer as long as is said.
    let code = unsafe { libc::getpwuid_r(user, entry.as_mut_ptr(), buffer.as_mut_ptr(), buffer.len(), &raw mut found) };
    if code != 0 || found.is_null() {
        return None;
    }
    // SAFETY: where it found the user the call has filled in the entry.
    let entry = unsafe { entry.assume_init() };
    // SAFETY: the name is a string that ends with a NUL, in the buffer, which still lives.
    let name = unsafe { CStr::from_ptr(entry.pw_name) };
    name.to_str().ok().map(str::to_owned)
}

/// Start a program that is nobody's child, with the given descriptors as its 0, 1, 2 ..., default signal handling and nothing blocked.
///
/// Its parent is a process that has ended by then: what takes in orphans is its parent. Both share this process's memory until the
/// program's exec (`CLONE_VM | CLONE_VFORK`, as posix_spawn does), so that it costs the same however large this process is. The one
/// in between signals nobody when it ends and is waited for here: who waits for any child of this process never sees it.
pub fn spawn_orphan(
    program: &CStr,
    arguments: &[CString],
    environment: &[CString],
    descriptors: &[OwnedFd],
) -> Result<i32, Errno> {
    // dup2 into the low numbers must not overwrite a source that is still needed: the caller's copies lie above them.
    debug_assert!(descriptors.iter().all(|fd| usize::try_from(fd.as_raw_fd()).is_ok_and(|fd| fd >= descriptors.len())));
    let argv = null_terminated(arguments);
    let envp = null_terminated(environment);
    let descriptors: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let mut stacks = [(); 2].map(|()| vec![0u128; STACK / size_of::<u128>()]);
    let [outer, inner] = stacks.each_mut().map(|stack| stack.as_mut_ptr_range().end.cast::<libc::c_void>());
    let mut start = Start {
        program: program.as_ptr(),
        argv: argv.as_ptr().cast(),
        envp: envp.as_ptr().cast(),
        descriptors: &descriptors,
        stack: inner,
        pid: 0,
        error: 0,
    };
    let pid = {
        // A handler of this process that ran in the others would work on this process's memory.
        let _blocked = BlockedSignals::new()?;
        // SAFETY: the function, its stack and what it is given live until it has ended: this thread goes on only then. It calls
        // only what may be called between fork and exec, and `errno`, which it may change, means nothing here until it has.
        unsafe { libc::clone(between, outer, libc::CLONE_VM | libc::CLONE_VFORK, (&raw mut start).cast()) }
    };
    if pid < 0 {
        return Err(last_errno());
    }
    // SAFETY: no memory is given. The process has ended and has no signal to tell it with: nobody else waits for it.
    unsafe { libc::waitpid(pid, ptr::null_mut(), libc::__WALL) };
    check(start.error).map(|()| start.pid)
}

/// Of each stack of [`spawn_orphan`]: a few hundred bytes are used, and more where the loader binds a symbol only then.
const STACK: usize = 32 << 10;

/// What the processes of [`spawn_orphan`] work with, in the memory that all three share.
struct Start<'a> {
    program: *const libc::c_char,
    argv: *const *const libc::c_char,
    envp: *const *const libc::c_char,
    descriptors: &'a [RawFd],
    stack: *mut libc::c_void,
    pid: libc::c_int,
    error: libc::c_int,
}

/// The process in between: it starts the one that becomes the program, and ends.
extern "C" fn between(start: *mut libc::c_void) -> libc::c_int {
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    let start = start.cast::<Start>();
    // SAFETY: `spawn_orphan` waits while this runs, and keeps what it has given alive.
    let stack = unsafe { (*start).stack };
    // SAFETY: as in `spawn_orphan`; this process waits until the other has become the program.
    let pid = unsafe { libc::clone(become_program, stack, flags, start.cast()) };
    if pid < 0 {
        note(start);
    }
    // SAFETY: as above; the other one does not write there.
    unsafe { (*start).pid = pid };
    0
}

/// Give every signal its default disposition and unblock all: what a program may expect at its start.
///
/// Python ignores SIGPIPE, Rust too; an ignored signal would stay so through exec.
pub fn reset_signals() {
    // The kernel's struct of the largest architecture: handler, flags, restorer, mask. Past the C library, which keeps
    // two signals for itself and would leave them ignored if they were.
    let default = [0u64; 4];
    for signal in 1..=64 {
        let old = ptr::null_mut::<u64>();
        // SAFETY: the call reads no more than there is of `default`, in which zeros mean SIG_DFL, no flags, empty mask, in every
        // architecture's layout; the old action is not asked for. SIGKILL and SIGSTOP cannot be set and have their default
        // anyway.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), old, size_of::<u64>()) };
    }
    let mut none = MaybeUninit::uninit();
    // SAFETY: the call makes a valid set of the memory, without reading it.
    unsafe { libc::sigemptyset(none.as_mut_ptr()) };
    // SAFETY: the set, just made, is only read; the old mask is not asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut()) };
}

/// The process that becomes the program, or notes why it cannot.
extern "C" fn become_program(start: *mut libc::c_void) -> libc::c_int {
    let start = start.cast::<Start>();
    // SAFETY: the two others wait while this runs, and what they have given is alive.
    let Start { program, argv, envp, descriptors, .. } = unsafe { &*start };
    for (target, source) in (0..).zip(*descriptors) {
        // SAFETY: a call without pointers. The table of descriptors is this process's own.
        if unsafe { libc::dup2(*source, target) } < 0 {
            note(start);
            return 127;
        }
    }
    reset_signals(); // the table of handlers is this process's own
    // SAFETY: the arrays end with a null and live, as do their strings.
    unsafe { libc::execve(*program, *argv, *envp) };
    note(start);
    127
}

/// Keep this thread's last error for who waits.
fn note(start: *mut Start<'_>) {
    // SAFETY: who shares the memory waits, so that nothing else refers to it.
    unsafe { (*start).error = last_errno().raw_os_error() };
}

/// Pointers to the strings, and a null.
fn null_terminated(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
}

/// The path under which any call can reach what a descriptor stands for, `O_PATH` ones too (proc(5)).
#[must_use]
pub fn descriptor_path(descriptor: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_raw_fd()))
}

fn check(code: libc::c_int) -> Result<(), Errno> {
    if code == 0 { Ok(()) } else { Err(Errno::from_raw_os_error(code)) }
}

fn last_errno() -> Errno {
    std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}

/// A duplicate of a descriptor that is known by its number only; an error when it is not open.
pub fn duplicate(number: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes a plain number and refuses one that is not open.
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(last_errno());
    }
    // SAFETY: the call just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// The first cells of a file, mapped: every process that maps the file sees the same ones.
#[derive(Debug)]
pub struct SharedCells {
    start: NonNull<AtomicU64>,
    count: usize,
}

impl SharedCells {
    /// Map the first `count` cells of a file that is at least that long, and is never cut.
    ///
    /// A file that is cut all the same takes the process down (SIGBUS) at its next access; so does a hole on a full disk.
    pub fn map(file: BorrowedFd<'_>, count: usize) -> Result<Self, Errno> {
        let length = count.checked_mul(size_of::<AtomicU64>()).filter(|length| *length > 0).ok_or(Errno::INVAL)?;
        // SAFETY: the kernel chooses a place that is free; nothing that exists is touched.
        let start =
            unsafe { mmap(ptr::null_mut(), length, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, file, 0) }?;
        Ok(Self { start: NonNull::new(start.cast()).ok_or(Errno::NOMEM)?, count })
    }

    /// The cells.
    #[must_use]
    pub fn cells(&self) -> &[AtomicU64] {
        // SAFETY: the mapping starts at a page, so that it is aligned, is as long as `count` cells, and lives as long as
        // `self`. Any bits are a valid cell, and all access, by other processes too, is atomic.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.count) }
    }
}

impl Drop for SharedCells {
    fn drop(&mut self) {
        // SAFETY: made by `map` with this length, and no reference into it outlives `self`. Unmapping cannot fail then.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.count * size_of::<AtomicU64>()) };
    }
}

// SAFETY: the mapping belongs to the process, not to a thread, and its cells are atomic.
unsafe impl Send for SharedCells {}
// SAFETY: as above.
unsafe impl Sync for SharedCells {}

/// A mapping of whole pages that is taken away with its value.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

impl Mapping {
    fn new(file: BorrowedFd<'_>, length: usize, access: ProtFlags) -> Result<Self, Errno> {
        if length == 0 {
            return Err(Errno::INVAL);
        }
        // SAFETY: the kernel chooses a place that is free; nothing that exists is touched.
        let start = unsafe { mmap(ptr::null_mut(), length, access, MapFlags::SHARED, file, 0) }?;
        Ok(Self { start: NonNull::new(start.cast()).ok_or(Errno::NOMEM)?, length })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made by `new` with this length, and no reference into it outlives `self`. Unmapping cannot fail then.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.length) };
    }
}

// SAFETY: the mapping belongs to the process, not to a thread; whoever gives references into it minds who may write.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

/// A piece of memory that another process can read by a descriptor, and nobody but its owner can write.
#[derive(Debug)]
pub struct Piece {
    memory: Arc<Mapping>,
    start: usize,
    length: usize,
}

impl Piece {
    /// Make `count` pieces of `length` bytes each, one after the other in the memory that the descriptor stands for.
    ///
    /// All of it is there from the beginning: memory that cannot be had later would be a SIGBUS. Seals keep everybody else from
    /// writing to it, and everybody from making it shorter.
    pub fn make(count: usize, length: usize) -> Result<(OwnedFd, Vec<Self>), Errno> {
        let total = count.checked_mul(length).ok_or(Errno::INVAL)?;
        let size = u64::try_from(total).map_err(|_| Errno::INVAL)?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("lamella-pieces", flags)?;
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, size)?;
        let memory = Arc::new(Mapping::new(file.as_fd(), total, ProtFlags::READ | ProtFlags::WRITE)?);
        // FUTURE_WRITE leaves the mapping that there is (Linux 5.1).
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&file, seals)?;
        let piece = |index| Self { memory: Arc::clone(&memory), start: index * length, length };
        Ok((file, (0..count).map(piece).collect()))
    }
}

impl std::ops::Deref for Piece {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `make` gave out this part once, and it lies in the mapping, which lives as long as `self`.
        let start = unsafe { self.memory.start.add(self.start) };
        // SAFETY: as above. Only `self` writes to it, which is borrowed; the seals keep other processes from it.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), self.length) }
    }
}

impl std::ops::DerefMut for Piece {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`.
        let start = unsafe { self.memory.start.add(self.start) };
        // SAFETY: as in `deref`, and `self` is borrowed alone. Another process that reads meanwhile sees a mixture, and nothing
        // of this one depends on what it sees.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), self.length) }
    }
}

/// The pieces of another process, to be read.
#[derive(Debug)]
pub struct OtherPieces {
    memory: Mapping,
    length: usize,
}

impl OtherPieces {
    /// Map what [`Piece::make`] made in another process, of pieces of `length` bytes.
    pub fn map(file: BorrowedFd<'_>, length: usize) -> Result<Self, Errno> {
        let wanted = SealFlags::SHRINK;
        if !rustix::fs::fcntl_get_seals(file)?.contains(wanted) {
            return Err(Errno::INVAL); // could be cut, and a later access be a SIGBUS
        }
        let size = usize::try_from(rustix::fs::fstat(file)?.st_size).map_err(|_| Errno::INVAL)?;
        Ok(Self { memory: Mapping::new(file, size, ProtFlags::READ)?, length })
    }

    /// The first bytes of a piece; None where there are none such.
    ///
    /// They are right as long as their owner has lent the piece; it writes there only when it was given back.
    #[must_use]
    pub fn get(&self, index: usize, count: usize) -> Option<&[u8]> {
        let start = index.checked_mul(self.length)?;
        if count > self.length || start.checked_add(count)? > self.memory.length {
            return None;
        }
        // SAFETY: it lies in the mapping, as was just checked, and that lives as long as `self`.
        let start = unsafe { self.memory.start.add(start) };
        // SAFETY: as above. The other process writes there when this one has given the piece back, and so looks at it no more.
        Some(unsafe { std::slice::from_raw_parts(start.as_ptr(), count) })
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    /// Keep this process on one processor, where nothing that it starts runs before it pauses or ends; false where it may not.
    fn goes_first() -> bool {
        let present = rustix::thread::sched_getaffinity(None).expect("it runs on some");
        let mut first = rustix::thread::CpuSet::new();
        first.set((0..rustix::thread::CpuSet::MAX_CPU).find(|&number| present.is_set(number)).expect("one of them"));
        rustix::thread::sched_setaffinity(None, &first).expect("it is among them");
        let priority = libc::sched_param { sched_priority: 1 };
        // SAFETY: the call reads a struct that lives until it returns.
        check(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) }).is_ok()
    }

    #[test]
    fn who_keeps_a_user_namespace_ends_with_a_parent_that_died_before_it_could_ask_for_that() {
        const MADE: libc::c_int = 0;
        const MAY_NOT: libc::c_int = 2;
        // Who is to end has a copy of the one end, too.
        let (ends, held) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
        // SAFETY: the child uses nothing that another thread may have been at, but the allocator, which fork(2) leaves in order.
        let parent = unsafe { libc::fork() };
        if parent == 0 {
            let status = match goes_first() {
                true => UserNamespace::new(false).map_or(1, |made| {
                    std::mem::forget(made);
                    MADE
                }),
                false => MAY_NOT,
            };
            // SAFETY: a number only.
            unsafe { libc::_exit(status) };
        }
        drop(held);
        let mut status = -1;
        // SAFETY: the call writes to an integer that lives until it returns.
        unsafe { libc::waitpid(parent, &raw mut status, 0) };
        if libc::WEXITSTATUS(status) == MAY_NOT {
            return; // it takes CAP_SYS_NICE
        }
        assert_eq!(status, MADE);
        let patience = Timespec { tv_sec: 20, tv_nsec: 0 };
        assert_eq!(poll(&mut [PollFd::new(&ends, PollFlags::IN)], Some(&patience)), Ok(1), "it goes on");
    }
}
