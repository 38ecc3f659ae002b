"""The host: it compresses a model into variants, sends them to devices, measures, selects and deploys."""
