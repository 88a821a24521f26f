"""diffgr2: generative reasoning re-ranking, autoregressive and block-diffusion."""

__version__ = "0.1.0"
