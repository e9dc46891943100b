//! Loops compiled three times, for any processor, for those with AVX2 and for those with AVX-512, of which the running one gets what it can. Only
//! widths differ: nothing is fused or reordered, so all give the same bits.

/// Defines functions whose body is compiled for AVX2 and AVX-512 too. What they call has to be `#[inline(always)]` to be so as well.
macro_rules! wide {
    ($($(#[$doc:meta])* $vis:vis fn $name:ident $(<const $k:ident: usize>)? ($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block)*) => {$(
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name $(<const $k: usize>)? ($($argument: $type),*) $(-> $result)? {
            #[inline(always)]
            fn plain $(<const $k: usize>)? ($($argument: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512 $(<const $k: usize>)? ($($argument: $type),*) $(-> $result)? {
                    plain $(::<$k>)? ($($argument),*)
                }
                #[target_feature(enable = "avx2")]
                fn avx2 $(<const $k: usize>)? ($($argument: $type),*) $(-> $result)? {
                    plain $(::<$k>)? ($($argument),*)
                }
                use std::arch::is_x86_feature_detected as has;
                if has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl") {
                    // SAFETY: the processor has what the function is compiled for.
                    #[allow(unsafe_code)]
                    return unsafe { avx512 $(::<$k>)? ($($argument),*) };
                }
                if has!("avx2") {
                    // SAFETY: the processor has what the function is compiled for.
                    #[allow(unsafe_code)]
                    return unsafe { avx2 $(::<$k>)? ($($argument),*) };
                }
            }
            plain $(::<$k>)? ($($argument),*)
        }
    )*};
}
pub(crate) use wide;
