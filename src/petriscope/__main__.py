from petriscope.cli import main

main()
