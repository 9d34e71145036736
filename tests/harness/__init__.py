"""What the end-to-end tests share: a private Apache, a raw HTTP client, process and log inspection."""
