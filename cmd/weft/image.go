package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/weftnet/weft/internal/image"
)

func (a *app) imageCommand() *cobra.Command {
	cmd := group("image", "Keep the images VMs are made of: kernels with initrds and container disks")
	cmd.AddCommand(a.imageLoadCommand(), a.imagePullCommand(), a.imageListCommand(), a.imageRemoveCommand())
	return cmd
}

func (a *app) images() (*image.Store, error) {
	if err := requireRoot(); err != nil {
		return nil, err
	}
	in, err := a.instance()
	if err != nil {
		return nil, err
	}
	return image.Open(in.ImageDir())
}

func (a *app) imageLoadCommand() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use: "load FILE", Short: "Load an OCI or docker archive, or an OCI layout directory", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			images, err := a.images()
			if err != nil {
				return err
			}
			loaded, err := images.Load(cmd.Context(), args[0], name)
			for _, img := range loaded {
				a.printf("loaded %s %s\n", img.Name, img.Digest)
			}
			return err
		},
	}
	cmd.Flags().StringVar(&name, "as", "", "name to give the image instead of the one in the file")
	return cmd
}

func (a *app) imagePullCommand() *cobra.Command {
	return &cobra.Command{
		Use: "pull IMAGE", Short: "Fetch an image from its registry", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			images, err := a.images()
			if err != nil {
				return err
			}
			img, err := images.Pull(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			a.printf("pulled %s %s\n", img.Name, img.Digest)
			return nil
		},
	}
}

func (a *app) imageListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "ls", Short: "List the images", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			images, err := a.images()
			if err != nil {
				return err
			}
			list, err := images.List()
			if err != nil {
				return err
			}
			t := table{header: []string{"IMAGE", "DIGEST", "SIZE", "CREATED"}}
			for _, img := range list {
				created := "-"
				if !img.Created.IsZero() {
					created = img.Created.Format(time.DateTime)
				}
				t.rows = append(t.rows, []string{img.Name, shortDigest(img.Digest), fmt.Sprintf("%.1f MB", float64(img.Size)/1e6), created})
			}
			a.printf("%s", t)
			return nil
		},
	}
}

func shortDigest(digest string) string {
	const shown = len("sha256:") + 12
	if len(digest) <= shown {
		return digest
	}
	return digest[:shown]
}

func (a *app) imageRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rm IMAGE...", Short: "Remove images", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			images, err := a.images()
			if err != nil {
				return err
			}
			for _, name := range args {
				if err := images.Remove(cmd.Context(), name); err != nil {
					return err
				}
				a.printf("removed %s\n", name)
			}
			return nil
		},
	}
}
