"""Commands that change a store file or a running server: their target, token and outcome."""
