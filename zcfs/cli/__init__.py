"""The command line, one file a verb. A verb has HELP, configure(parser) and run(args)."""
