//! C interface to the Hugging Face `tokenizers` crate; the C++ side is lib/tokenizer/tokenizer.cc.
//!
//! Every function that can fail returns 0 and fills its outputs, or returns non-zero and fills
//! `error` with text that the caller frees with gradq_tokenizer_free_bytes. No panic crosses the
//! interface: each entry runs under catch_unwind, and a panic becomes an error. A handle is never
//! changed after gradq_tokenizer_open, so one handle serves several threads.

use std::any::Any;
use std::panic::{catch_unwind, set_hook, AssertUnwindSafe};
use std::slice;
use std::sync::Once;

use tokenizers::Tokenizer;

/// Bytes owned by this library; `capacity` is what freeing needs.
#[repr(C)]
pub struct Bytes {
    data: *mut u8,
    size: usize,
    capacity: usize,
}

/// Token ids owned by this library.
#[repr(C)]
pub struct Ids {
    data: *mut u32,
    size: usize,
    capacity: usize,
}

const OK: i32 = 0;
const FAILED: i32 = 1;

fn release<T>(mut items: Vec<T>) -> (*mut T, usize, usize) {
    let parts = (items.as_mut_ptr(), items.len(), items.capacity());
    std::mem::forget(items);
    parts
}

fn into_bytes(items: Vec<u8>) -> Bytes {
    let (data, size, capacity) = release(items);
    Bytes {
        data,
        size,
        capacity,
    }
}

fn panic_text(panic: Box<dyn Any + Send>) -> String {
    let text = if let Some(text) = panic.downcast_ref::<&str>() {
        (*text).to_string()
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else {
        "no message".to_string()
    };
    format!("tokenizers crate panicked: {text}")
}

/// Runs `body` and turns its error, or its panic, into the return code and `error`.
///
/// # Safety
/// `error` is valid for writes.
unsafe fn guarded(error: *mut Bytes, body: impl FnOnce() -> Result<(), String>) -> i32 {
    // The caller reports the error; the default hook would print a backtrace as if the process had
    // crashed.
    static SILENCE: Once = Once::new();
    SILENCE.call_once(|| set_hook(Box::new(|_| {})));
    let result =
        catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| Err(panic_text(panic)));
    match result {
        Ok(()) => OK,
        Err(text) => {
            error.write(into_bytes(text.into_bytes()));
            FAILED
        }
    }
}

/// A slice from C, where an empty one may have a null pointer.
unsafe fn borrowed<'a, T>(data: *const T, size: usize) -> &'a [T] {
    if size == 0 {
        &[]
    } else {
        slice::from_raw_parts(data, size)
    }
}

/// Parses tokenizer.json. Truncation and padding set in the file are switched off: the caller wants
/// the ids of the whole text.
///
/// # Safety
/// `json` points to `size` bytes; `handle` and `error` are valid for writes.
#[no_mangle]
pub unsafe extern "C" fn gradq_tokenizer_open(
    json: *const u8,
    size: usize,
    handle: *mut *mut Tokenizer,
    error: *mut Bytes,
) -> i32 {
    guarded(error, || {
        let mut tokenizer =
            Tokenizer::from_bytes(borrowed(json, size)).map_err(|e| e.to_string())?;
        tokenizer.with_truncation(None).map_err(|e| e.to_string())?;
        tokenizer.with_padding(None);
        handle.write(Box::into_raw(Box::new(tokenizer)));
        Ok(())
    })
}

/// # Safety
/// `handle` comes from gradq_tokenizer_open and is not used again.
#[no_mangle]
pub unsafe extern "C" fn gradq_tokenizer_close(handle: *mut Tokenizer) {
    if !handle.is_null() {
        // A destructor that panics leaks the rest: there is nobody to report to.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(Box::from_raw(handle))));
    }
}

/// # Safety
/// `handle` comes from gradq_tokenizer_open; `text` points to `size` bytes; `ids` and `error` are
/// valid for writes.
#[no_mangle]
pub unsafe extern "C" fn gradq_tokenizer_encode(
    handle: *const Tokenizer,
    text: *const u8,
    size: usize,
    add_special_tokens: bool,
    ids: *mut Ids,
    error: *mut Bytes,
) -> i32 {
    guarded(error, || {
        let text = std::str::from_utf8(borrowed(text, size)).map_err(|e| e.to_string())?;
        let encoding = (*handle)
            .encode_fast(text, add_special_tokens)
            .map_err(|e| e.to_string())?;
        let (data, size, capacity) = release(encoding.get_ids().to_vec());
        ids.write(Ids {
            data,
            size,
            capacity,
        });
        Ok(())
    })
}

/// # Safety
/// `handle` comes from gradq_tokenizer_open; `ids` points to `size` values; `text` and `error` are
/// valid for writes.
#[no_mangle]
pub unsafe extern "C" fn gradq_tokenizer_decode(
    handle: *const Tokenizer,
    ids: *const u32,
    size: usize,
    skip_special_tokens: bool,
    text: *mut Bytes,
    error: *mut Bytes,
) -> i32 {
    guarded(error, || {
        let decoded = (*handle)
            .decode(borrowed(ids, size), skip_special_tokens)
            .map_err(|e| e.to_string())?;
        text.write(into_bytes(decoded.into_bytes()));
        Ok(())
    })
}

/// One more than the largest id, added tokens included: ids may have gaps, and an id is in range of
/// an embedding exactly when this is at most its rows.
///
/// # Safety
/// `handle` comes from gradq_tokenizer_open; `size` and `error` are valid for writes.
#[no_mangle]
pub unsafe extern "C" fn gradq_tokenizer_vocab_size(
    handle: *const Tokenizer,
    size: *mut i64,
    error: *mut Bytes,
) -> i32 {
    guarded(error, || {
        let largest = (*handle).get_vocab(true).into_values().max();
        size.write(largest.map_or(0, |id| i64::from(id) + 1));
        Ok(())
    })
}

/// # Safety
/// `bytes` was filled by this library and is not used again.
#[no_mangle]
pub unsafe extern "C" fn gradq_tokenizer_free_bytes(bytes: Bytes) {
    if !bytes.data.is_null() {
        drop(Vec::from_raw_parts(bytes.data, bytes.size, bytes.capacity));
    }
}

/// # Safety
/// `ids` was filled by this library and is not used again.
#[no_mangle]
pub unsafe extern "C" fn gradq_tokenizer_free_ids(ids: Ids) {
    if !ids.data.is_null() {
        drop(Vec::from_raw_parts(ids.data, ids.size, ids.capacity));
    }
}
